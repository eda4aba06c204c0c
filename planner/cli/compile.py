"""planner compile: from a model.yaml to a proved artefact."""

from pathlib import Path

import click

from planner.cli.output import PATH, json_option, show


@click.command("compile", short_help="Measure a model, plan, emit and prove.")
@click.argument("model", type=PATH, metavar="MODEL.yaml")
@click.option(
    "--target",
    default="local",
    show_default=True,
    metavar="NAME|FILE.yaml",
    help="Hardware to plan for: 'local' measures this machine, others are in 'planner targets'.",
)
@click.option("-o", "--out", type=PATH, default=Path("out"), show_default=True, help="Directory to write.")
@click.option(
    "--passes",
    metavar="SPEC",
    help="Methods to offer, as name{option=value,value},name; all of 'planner passes' if left out.",
)
@click.option(
    "--plan",
    type=PATH,
    metavar="PLAN.yaml",
    help="Carry out this plan instead of searching for one: an imported one, or the plan.yaml of an artefact.",
)
@click.option("--dump", type=PATH, metavar="DIR", help="Also write the space after each pass into DIR.")
@click.option("--backend", metavar="NAME", help="Runtime to emit for; one of 'planner backends'.")
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Seed of measuring and solving."
)
@json_option
def command(
    model: Path,
    target: str,
    out: Path,
    passes: str | None,
    plan: Path | None,
    dump: Path | None,
    backend: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Measure a model, find the best plan within its limits, write it and prove it by running it.

    \b
    planner compile examples/smollm2.yaml --target local -o out/smollm2
    planner compile model.yaml --target a100 --passes "uniform-kv{tokens=64,128},assign"
    planner compile model.yaml --plan plan.yaml

    The table shows bytes, seconds per decoded token, seconds to the first token and the loss in nats per token, each
    predicted and measured, for the dense model, the best uniform setting and the plan. Measuring a model is done
    once and kept; a killed run resumes.
    """
    if plan is not None and (passes is not None or dump is not None):
        raise click.UsageError("--plan leaves nothing to search: it does not go with --passes or --dump")

    from planner.config import load_request

    request = load_request(model)

    from planner import api
    from planner.progress import ProgressLine

    with ProgressLine() as progress:
        if plan is not None:
            result = api.compile_plan(
                request, plan, target=target, out=out, backend=backend, seed=seed, progress=progress
            )
        else:
            result = api.compile(
                request, target=target, out=out, passes=passes, dump=dump, backend=backend, seed=seed, progress=progress
            )
    show(result, as_json)
