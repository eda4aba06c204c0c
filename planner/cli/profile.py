"""planner profile: measure a model or this machine."""

from pathlib import Path
from typing import Literal

import click

from planner.cli.output import PATH, json_option, show


@click.group("profile", short_help="Measure a model or this machine.")
def command() -> None:
    """Measure a model or this machine, without compiling.

    \b
    planner profile model model.yaml
    planner profile hardware --out mine.yaml
    """


@command.command("model")
@click.argument("model", type=PATH, metavar="MODEL.yaml")
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Seed of measuring, as for compile."
)
@click.option(
    "--backend",
    metavar="NAME",
    help="Runtime whose formats are priced; what compile takes for a CPU if left out.",
)
@json_option
def model_command(model: Path, seed: int, backend: str | None, as_json: bool) -> None:
    """Price every option of every site of a model, in nats per token; kept by content, resumed after a kill.

    \b
    planner profile model examples/smollm2.yaml
    """
    from planner.config import load_request

    request = load_request(model)

    from planner import api
    from planner.progress import ProgressLine

    with ProgressLine() as progress:
        result = api.profile_model(request, progress, seed, backend)
    show(result, as_json)


@command.command("hardware")
@click.option("--out", type=PATH, metavar="FILE.yaml", help="Also write the profile, for --target FILE.yaml.")
@click.option(
    "--backend",
    default="onnxruntime",
    show_default=True,
    metavar="NAME",
    help="Runtime whose kernels are timed; one of 'planner backends'.",
)
@click.option(
    "--device",
    type=click.Choice(["cpu", "cuda"]),
    default="cpu",
    show_default=True,
    help="What is measured; cuda is the GPU that torch uses, ROCm's too.",
)
@click.option("--flash", type=PATH, metavar="DIR", help="Directory on the flash device to read, past the page cache.")
@click.option("--write", is_flag=True, help="Also measure writing to that device.")
@click.option("--quick", is_flag=True, help="A fifth of the time for each figure and no long caches, for CI.")
@click.option("--check", type=PATH, metavar="BASELINE.yaml", help="Compare with a profile of this machine.")
@click.option(
    "--tolerance",
    default="10%",
    show_default=True,
    metavar="PERCENT",
    help="With --check: how much longer a figure may take; its own spread widens it.",
)
@click.option("--junit", type=PATH, metavar="FILE.xml", help="With --check: also write the comparison as JUnit XML.")
@json_option
def hardware_command(
    out: Path | None,
    backend: str,
    device: Literal["cpu", "cuda"],
    flash: Path | None,
    write: bool,
    quick: bool,
    check: Path | None,
    tolerance: str,
    junit: Path | None,
    as_json: bool,
) -> None:
    """Measure this machine as a runtime uses it: memory, flash, products and attention; takes about a minute.

    \b
    planner profile hardware --out mine.yaml
    planner compile model.yaml --target mine.yaml
    planner profile hardware --check mine.yaml --tolerance 10% --junit report.xml

    Figures are medians; each stands in the profile beside the spread of its repeats. With --check it ends with exit
    code 5 if a figure is slower than the baseline by more than the tolerance and its own spread.
    """
    from planner import api
    from planner.drift import tolerance as share
    from planner.errors import InputError, Regression
    from planner.measured import Measuring
    from planner.progress import ProgressLine

    if junit is not None and check is None:
        raise InputError("--junit: there is nothing to report on; give --check BASELINE.yaml with it")
    how, allowed = Measuring(backend, device, flash, write, quick), share(tolerance)
    with ProgressLine() as progress:
        if check is None:
            result = api.profile_hardware(out, progress, how)
        else:
            result = api.check_hardware(check, allowed, out, junit, progress, how)
    show(result, as_json)
    for complaint in result.complaints:
        click.echo(f"Note: {complaint}", err=True)
    if result.drift is not None and result.drift.slower:
        worst, *others = result.drift.slower
        raise Regression(
            f"{check}: {worst.name} takes {worst.ratio:.2f} times as long, {worst.allowed:.2f} allowed;"
            f" {len(others)} other figures are slower than allowed"
        )
