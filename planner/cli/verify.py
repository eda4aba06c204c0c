"""planner verify: run an artefact on a text and measure what it keeps."""

from pathlib import Path

import click

from planner.cli.output import PATH, json_option, show


@click.command("verify", short_help="Run an artefact and measure what it keeps.")
@click.argument("directory", type=PATH, metavar="OUT")
@click.option(
    "--text",
    type=PATH,
    metavar="FILE",
    help="UTF-8 text to measure on; the shipped one, which no calibration reads, if left out.",
)
@click.option(
    "--documents",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    help="Documents of the text to measure; more narrow the intervals.",
)
@click.option(
    "--recall",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    help="Prompts that hide a passkey, and as many that hide a key-value pair; 0 for none.",
)
@json_option
def command(directory: Path, text: Path | None, documents: int, recall: int, as_json: bool) -> None:
    """Run a compiled artefact beside its dense model: KL in nats per token, perplexity, retrieval, bytes, seconds.

    \b
    planner verify out --text mine.txt --documents 16

    Dense is the artefact's own weights, as stored, under a full cache. Ends with exit code 4 if the loss is above the
    plan's limit.
    """
    from planner import api
    from planner.errors import VerificationFailed
    from planner.progress import ProgressLine

    with ProgressLine() as progress:
        result = api.verify(directory, text, documents, recall, progress)
    show(result, as_json)
    if result.missed:
        raise VerificationFailed(f"{directory}: measured {result.missed} on this text")
