"""How results reach the user: a table, or with --json exactly one JSON document on stdout."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import click


class Result(Protocol):
    """What every command ends with."""

    def as_text(self) -> str: ...

    def as_json(self) -> Mapping[str, object]: ...


PATH = click.Path(path_type=Path)
json_option: Callable[[Callable[..., None]], Callable[..., None]] = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON document instead of text."
)


def show(result: Result, as_json: bool) -> None:
    """Print a result."""
    click.echo(json.dumps(result.as_json(), indent=1, allow_nan=False) if as_json else result.as_text())
