"""planner check: run an artefact's kernels against their references, without a GPU."""

from pathlib import Path

import click

from planner.cli.output import PATH, json_option, show


@click.command("check", short_help="Run emitted kernels against their references.")
@click.argument("directory", type=PATH, metavar="OUT")
@click.option("--quick", is_flag=True, help="Only the smallest shape of the plan for each kernel, and float16 inputs.")
@json_option
def command(directory: Path, quick: bool, as_json: bool) -> None:
    """Run every kernel that was written beside a plan in Triton's interpreter, and compare it with its reference.

    \b
    planner compile model.yaml --target a100 -o out
    planner check out

    Shapes are those of the plan, and hostile ones: one token, empty pages, a ring's wrap, odd groups. The table shows
    the largest norm-wise relative error beside its limit, and for each launch of the plan the bytes it loads, counted
    in sectors of 32, over those it must load. Ends with exit code 4 if a kernel is wrong.
    """
    from planner import api
    from planner.errors import VerificationFailed
    from planner.progress import ProgressLine

    with ProgressLine() as progress:
        result = api.check(directory, quick, progress)
    show(result, as_json)
    if result.wrong:
        raise VerificationFailed(f"{directory}: {len(result.wrong)} of {len(result.cases)} kernel cases are wrong")
