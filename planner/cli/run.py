"""planner run: generate text from an artefact."""

from pathlib import Path

import click

from planner.cli.output import PATH


@click.command("run", short_help="Generate text with an artefact.")
@click.argument("directory", type=PATH, metavar="OUT")
@click.option("--prompt", required=True, metavar="TEXT", help="What the user says.")
@click.option(
    "--max-new-tokens", type=click.IntRange(min=1), default=128, show_default=True, help="Tokens to generate at most."
)
def command(directory: Path, prompt: str, max_new_tokens: int) -> None:
    """Generate text with a compiled artefact, printed as it comes.

    \b
    planner run out --prompt "What is a cache?" --max-new-tokens 64
    """
    from planner import api

    for piece in api.run(directory, prompt, max_new_tokens):
        click.echo(piece, nl=False)
    click.echo()
