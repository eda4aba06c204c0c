"""planner bench: time an artefact, and others in turns with it."""

from pathlib import Path

import click

from planner.cli.output import PATH, json_option, show


@click.command("bench", short_help="Time an artefact, and others in turns with it.")
@click.argument("directory", type=PATH, metavar="OUT")
@click.option(
    "--against",
    multiple=True,
    metavar="dense|llama.cpp|DIR",
    help="Also time this, in turns: the artefact's weights under a full cache, llama.cpp, or another artefact. May be"
    " repeated.",
)
@click.option("--model", type=PATH, metavar="YAML", help="The artefact's model.yaml, which llama.cpp needs.")
@click.option(
    "--documents",
    type=click.IntRange(min=1),
    default=2,
    show_default=True,
    help="Documents on which the loss is measured beside llama.cpp.",
)
@click.option(
    "--context-tokens",
    type=click.IntRange(min=64),
    help="Context that prompt and generated tokens fill; the plan's longest if left out.",
)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Requests at once.")
@click.option("--rounds", type=click.IntRange(min=1), default=3, show_default=True, help="Turns of each.")
@json_option
def command(
    directory: Path,
    against: tuple[str, ...],
    model: Path | None,
    documents: int,
    context_tokens: int | None,
    batch: int,
    rounds: int,
    as_json: bool,
) -> None:
    """Time a compiled artefact on this machine: milliseconds per token, seconds to the first token, bytes.

    \b
    planner bench out --against dense
    planner compile model.yaml --passes uniform-kv,kv-bits,weight-bits,assign -o out-uniform
    planner bench out --against out-uniform --batch 4
    planner bench out --against llama.cpp --model model.yaml

    llama.cpp runs the same model as its source stores it, with the best of its own settings, and what all of them lose
    is measured too (pip install 'llm-planner[llamacpp]').

    All of them take turns, so that a busy moment hits all alike; trust ratios more than times.
    """
    from planner import api
    from planner.progress import ProgressLine

    with ProgressLine() as progress:
        result = api.bench(directory, against, context_tokens, batch, rounds, progress, model, documents)
    show(result, as_json)
