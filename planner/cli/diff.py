"""planner diff: what differs between two plans."""

from pathlib import Path

import click

from planner.cli.output import PATH, json_option, show


@click.command("diff", short_help="What differs between two plans.")
@click.argument("a", type=PATH, metavar="A.yaml")
@click.argument("b", type=PATH, metavar="B.yaml")
@json_option
def command(a: Path, b: Path, as_json: bool) -> None:
    """Compare two plans: what was asked, what they cost in bytes, seconds and nats, and the sites that differ.

    \b
    planner diff out/plan.yaml other/plan.yaml
    """
    from planner.difference import Difference
    from planner.plan import Plan
    from planner.serde import load_file

    show(Difference(load_file(a, Plan), load_file(b, Plan)), as_json)
