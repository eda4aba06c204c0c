"""planner export: a plan carried over to another runtime."""

from pathlib import Path

import click

from planner.cli.output import PATH, json_option, show


@click.command("export", short_help="Carry a plan over to another runtime.")
@click.argument("plan", type=PATH, metavar="PLAN")
@click.option("--model", type=PATH, required=True, metavar="MODEL.yaml", help="The model that the plan is for.")
@click.option("--backend", required=True, metavar="NAME", help="Runtime to carry it over to, or NAME@VERSION.")
@click.option(
    "--target",
    default="local",
    show_default=True,
    metavar="NAME|FILE.yaml",
    help="Hardware to predict seconds for, as for compile.",
)
@click.option("-o", "--out", type=PATH, default=Path("out"), show_default=True, help="Directory to write.")
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Seed of measuring and solving."
)
@json_option
def command(plan: Path, model: Path, backend: str, target: str, out: Path, seed: int, as_json: bool) -> None:
    """Write the nearest plan that a runtime carries to PLAN, an artefact or a plan document, and tell what that costs.

    \b
    planner export out --model model.yaml --backend onnxruntime-genai -o genai

    Near is meant in prices: each site's choice stands as far away as its loss, bytes and seconds differ, as shares of
    the plan's own. The plan's goal is kept where a carried plan can keep it. Compiling with --backend instead plans
    inside the runtime, which is never worse by the goal.
    """
    from planner.config import load_request

    request = load_request(model)

    from planner import api
    from planner.progress import ProgressLine

    with ProgressLine() as progress:
        result = api.export(request, plan, backend=backend, target=target, out=out, seed=seed, progress=progress)
    show(result, as_json)
