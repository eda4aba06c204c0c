"""planner import: a published plan as a plan of ours."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from planner.cli.output import PATH, json_option, show

if TYPE_CHECKING:
    from planner.published import PublishedFile

Command = TypeVar("Command", bound=Callable[..., None])


def arguments(command: Command) -> Command:
    """What every method takes."""
    for decorate in reversed(
        (
            click.argument("file", type=PATH, metavar="FILE"),
            click.option(
                "--model", type=PATH, required=True, metavar="MODEL.yaml", help="The model and workload it is for."
            ),
            click.option(
                "-o", "--out", type=PATH, default=Path("plan.yaml"), show_default=True, help="Plan document to write."
            ),
            click.option(
                "--target",
                default="local",
                show_default=True,
                metavar="NAME|FILE.yaml",
                help="Hardware to predict seconds for, as for compile.",
            ),
            click.option("--backend", metavar="NAME", help="Runtime to predict for; one of 'planner backends'."),
            json_option,
        )
    ):
        command = decorate(command)
    return command


def run(file: "PublishedFile", model: Path, out: Path, target: str, backend: str | None, as_json: bool) -> None:
    """Import a file and print what came of it."""
    from planner.config import load_request

    request = load_request(model)

    from planner import api
    from planner.progress import ProgressLine

    with ProgressLine() as progress:
        result = api.import_plan(request, file, out=out, target=target, backend=backend, progress=progress)
    show(result, as_json)


@click.group("import", short_help="Take over a published plan.")
def command() -> None:
    """Turn a plan that MoA, PrefixKV or DuoAttention published into one for this model, and price it.

    \b
    planner import moa moa_alpha_beta.json --model model.yaml --target a100 -o plan.yaml
    planner explain plan.yaml
    planner compile model.yaml --plan plan.yaml

    Query heads that share a KV head share what it keeps: the density that was published, and the one that this
    costs, are both told. A model that is a bare config gets bytes and seconds; compile runs one that has weights.
    """


@command.command("moa")
@arguments
def moa_command(file: Path, model: Path, out: Path, target: str, backend: str | None, as_json: bool) -> None:
    """A window alpha + beta * N for every query head: moa_alpha_beta.json of MoA.

    \b
    planner import moa moa_alpha_beta.json --model model.yaml
    """
    from profiles.plans.moa import Moa

    run(Moa(file), model, out, target, backend, as_json)


@command.command("prefixkv")
@arguments
def prefixkv_command(file: Path, model: Path, out: Path, target: str, backend: str | None, as_json: bool) -> None:
    """A share of tokens that each layer forgets: prefixkv_MODEL_RATIO.json of PrefixKV.

    \b
    planner import prefixkv prefixkv_llava-v1.5-7b_0.5.json --model model.yaml
    """
    from profiles.plans.prefixkv import PrefixKv

    run(PrefixKv(file), model, out, target, backend, as_json)


@command.command("duo")
@arguments
@click.option(
    "--sparsity",
    type=float,
    default=0.5,
    show_default=True,
    metavar="SHARE",
    help="Share of the KV heads that stream; 0.75 where every query head has its own.",
)
@click.option("--sinks", type=int, metavar="TOKENS", help="First tokens that streaming heads keep.")
@click.option("--recent", type=int, metavar="TOKENS", help="Newest tokens that streaming heads keep.")
def duo_command(
    file: Path,
    model: Path,
    out: Path,
    target: str,
    backend: str | None,
    as_json: bool,
    sparsity: float,
    sinks: int | None,
    recent: int | None,
) -> None:
    """A gate for every KV head: full_attention_heads.tsv of DuoAttention or LServe.

    \b
    planner import duo full_attention_heads.tsv --model model.yaml --sparsity 0.5

    Streaming heads keep what config.json beside the file says, unless --sinks and --recent say otherwise.
    """
    from profiles.plans.duo import Duo

    run(Duo(file, sparsity, sinks, recent), model, out, target, backend, as_json)
