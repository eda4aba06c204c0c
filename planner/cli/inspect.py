"""planner inspect: an artefact, or a file of weights, as a plan."""

from pathlib import Path

import click

from planner.cli.output import PATH, json_option, show


@click.command("inspect", short_help="Read an artefact back into a plan.")
@click.argument("path", type=PATH, metavar="DIR|FILE")
@click.option("-o", "--out", type=PATH, metavar="PLAN.yaml", help="Also write the plan document.")
@json_option
def command(path: Path, out: Path | None, as_json: bool) -> None:
    """Tell what an artefact holds, its files checked, or what a GGUF or a checkpoint that others made does.

    \b
    planner inspect out
    planner inspect model-Q4_K_M.gguf -o theirs.yaml
    planner inspect Llama-3.2-1B-Instruct-W4A16 --json

    Of files that carry no plan the format of every matrix is read, and of the cache if they name one.
    """
    from planner import api

    show(api.inspect(path, out), as_json)
