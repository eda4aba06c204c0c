"""Published plan files read as untrusted text: rows of finite numbers in range, as many as the model has heads."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from planner.errors import InputError
from planner.files import read_text
from planner.mismatch import did_you_mean, shown
from planner.plan import sha256
from planner.spec import ModelSpec

MOST_TOKENS = 2**24
"""More than any context there is."""

ANOTHER = "give the plan that was published for this model"


def text_and_sha256(path: Path) -> tuple[str, str]:
    """A file's text, and its sha256."""
    text = read_text(path)
    return text, sha256(text)


def parse_json(text: str, where: str) -> object:
    """The value of a JSON text."""
    try:
        value: object = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{where}: is not JSON: {error}; fetch the file again") from None
    return value


def record(value: object, fields: Sequence[str], where: str) -> Mapping[str, object]:
    """A JSON object that has these fields and no others."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: found {shown(value)}; needs an object of {' and '.join(fields)}")
    for name in fields:
        if name not in value:
            raise InputError(f"{where}: {name}: is missing; needs {' and '.join(fields)}")
    for name in value:
        if name not in fields:
            raise InputError(f"{where}: {name}: unknown field{did_you_mean(name, fields)}")
    return value


def items(value: object, where: str) -> Sequence[object]:
    """A JSON list."""
    if not isinstance(value, list):
        raise InputError(f"{where}: found {shown(value)}; needs a list")
    return value


def number(value: object, least: float, most: float, where: str) -> float:
    """A finite number of a range; neither NaN nor a boolean is one."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise InputError(f"{where}: found {shown(value)}; needs a number from {least:g} to {most:g}")
    return float(value)


def check_layers(found: int, spec: ModelSpec, where: str) -> None:
    """InputError unless there is a row for each layer."""
    if found != len(spec.layers):
        raise InputError(f"{where}: found {found} layers; the model has {len(spec.layers)}; {ANOTHER}")


def check_heads(found: int, wanted: int, kind: str, where: str) -> None:
    """InputError unless a row has a value for each head of its layer."""
    if found != wanted:
        raise InputError(f"{where}: found {found} values; the model has {wanted} {kind} heads there; {ANOTHER}")
