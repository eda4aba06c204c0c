"""planner pareto: the front over loss, time and bytes."""

from pathlib import Path

import click

from planner.cli.output import PATH, json_option, show


@click.command("pareto", short_help="The front over loss, time and bytes.")
@click.argument("model", type=PATH, metavar="MODEL.yaml")
@click.option(
    "--target",
    default="local",
    show_default=True,
    metavar="NAME|FILE.yaml",
    help="Hardware to plan for: 'local' measures this machine, others are in 'planner targets'.",
)
@click.option(
    "--over",
    metavar="NAME,NAME[,NAME]",
    help="Two or three of loss_nats, decode_s, ttft_s, memory_bytes, kv_bytes, weight_bytes;"
    " loss_nats,decode_s,memory_bytes if left out.",
)
@click.option("--points", type=int, default=40, show_default=True, help="Plans to solve for, at most.")
@click.option("--verify", type=int, default=3, show_default=True, help="Plans to run here, spread along the front.")
@click.option("-o", "--out", type=PATH, metavar="DIR", help="Also write JSON, table, plot and every plan into DIR.")
@click.option("--passes", metavar="SPEC", help="Methods to offer, as for compile.")
@click.option("--backend", metavar="NAME", help="Runtime to plan for; one of 'planner backends'.")
@click.option(
    "--seed", type=click.IntRange(0, 2**31 - 1), default=0, show_default=True, help="Seed of measuring and solving."
)
@json_option
def command(
    model: Path,
    target: str,
    over: str | None,
    points: int,
    verify: int,
    out: Path | None,
    passes: str | None,
    backend: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Solve for plans of which none is better than another in everything, run a few, and draw them.

    \b
    planner pareto model.yaml --target a100 -o front
    planner pareto model.yaml --over loss_nats,kv_bytes --points 20 --verify 0

    Limits of the goal are kept, but for those on what the front is over. Each plan is the best one within limits that
    its goal names: with that goal in model.yaml, compile finds it again. Seconds limited there are pessimistic ones.
    """
    from planner.config import load_request

    request = load_request(model)

    from planner import api
    from planner.progress import ProgressLine

    with ProgressLine() as progress:
        result = api.pareto(
            request,
            target=target,
            over=over,
            points=points,
            verify=verify,
            out=out,
            passes=passes,
            backend=backend,
            seed=seed,
            progress=progress,
        )
    show(result, as_json)
