"""planner explain: why a plan is as it is."""

from pathlib import Path

import click

from planner.cli.output import PATH, json_option, show


@click.command("explain", short_help="Why a plan is as it is.")
@click.argument("plan", type=PATH, metavar="PLAN.yaml")
@click.option("--against", type=PATH, metavar="OTHER.yaml", help="Show what differs from this plan instead.")
@click.option(
    "--site",
    "sites",
    multiple=True,
    metavar="NAME",
    help="Only sites whose name holds this ('layer 3 kv', 'attn_q'), with what binds them; repeatable.",
)
@json_option
def command(plan: Path, against: Path | None, sites: tuple[str, ...], as_json: bool) -> None:
    """Say what a plan was asked, what it costs, what each site got, and what one more unit of a limit would buy.

    \b
    planner explain out/plan.yaml
    planner explain out/plan.yaml --site "layer 3 kv head 0"

    Bought amounts are per MB, per ms or per milli-nat of the limit.
    """
    from planner.difference import Difference
    from planner.explain import explain
    from planner.plan import Plan
    from planner.serde import load_file

    told = load_file(plan, Plan)
    if against is None:
        show(explain(told, sites), as_json)
    elif sites:
        raise click.UsageError("--site and --against do not go together")
    else:
        show(Difference(load_file(against, Plan), told), as_json)
