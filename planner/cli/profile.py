"""planner profile: measure a model or this machine."""

from pathlib import Path

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
@json_option
def hardware_command(out: Path | None, backend: str, as_json: bool) -> None:
    """Measure this machine as a runtime uses it: memory, flash, products and attention; takes about a minute.

    \b
    planner profile hardware --out mine.yaml
    planner compile model.yaml --target mine.yaml
    """
    from planner import api
    from planner.progress import ProgressLine

    with ProgressLine() as progress:
        result = api.profile_hardware(out, progress, backend)
    show(result, as_json)
