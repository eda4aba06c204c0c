"""YAML text to plain values and back: mappings with string keys, lists, strings, numbers, booleans and null.

Reading is stricter than YAML. What could run code, repeat itself without bound or mean two things is refused: tags,
anchors and aliases, a key given twice, several documents. Scalars follow YAML 1.2, so `1e-5` is a number, and `no`
and `12:30` are strings.
"""

import re
from collections.abc import Iterator
from typing import TypeAlias

import yaml

from planner.errors import InputError

Plain: TypeAlias = "bool | int | float | str | list[Plain] | dict[str, Plain] | None"

DEEPEST = 64
LINE_WIDTH = 200
_WORDS: dict[str, Plain] = {"": None, "~": None}
_WORDS |= {
    cased: value
    for word, value in (("null", None), ("true", True), ("false", False))
    for cased in (word, word.title(), word.upper())
}
_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,39})")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+\.[0-9]*|[0-9]+(?=[eE]))([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)

# Written without quotes: what no reader of YAML 1.1 or 1.2 takes for anything but a string.
_BARE = re.compile(r"[A-Za-z_/][A-Za-z0-9_./+@-]*")
_READ_OTHERWISE = frozenset({"y", "n", "yes", "no", "on", "off", "true", "false", "null", "nan", "inf"})
_ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}


def parse(text: str, where: str) -> Plain:
    """The value of a document; an InputError that begins with `where` if it has none.

    >>> parse("goal: {minimise: loss_nats, limits: {kv_share: 1e-1}}", "model.yaml")
    {'goal': {'minimise': 'loss_nats', 'limits': {'kv_share': 0.1}}}
    >>> parse("a: 1\\na: 2", "model.yaml")
    Traceback (most recent call last):
    planner.errors.InputError: model.yaml: line 2: field 'a' is given twice
    """
    try:
        return _Reader(where).read(yaml.parse(text, Loader=yaml.CSafeLoader))
    except UnicodeEncodeError as error:
        raise InputError(f"{where}: holds half of a surrogate pair, which is no text") from error
    except yaml.YAMLError as error:
        raise InputError(f"{where}: {_complaint(error)}") from error


def _complaint(error: yaml.YAMLError) -> str:
    """The parser's error on one line."""
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark
        return f"{f'line {mark.line + 1}: ' if mark else ''}not YAML: {error.problem}"
    return f"not YAML: {' '.join(str(error).split())}"


class _Reader:
    """Builds values from the parser's events, with a stack of its own: depth is a limit, not a crash."""

    def __init__(self, where: str) -> None:
        self.where = where
        self.root: list[Plain] = []
        self.stack: list[list[Plain] | dict[str, Plain]] = [self.root]
        self.keys: list[str | None] = [None]  # of the mapping at each depth: the one whose value comes next

    def read(self, events: Iterator[yaml.Event]) -> Plain:
        for event in events:
            if isinstance(event, yaml.ScalarEvent):
                self.scalar(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self.stack.pop()
                self.keys.pop()
            elif isinstance(event, yaml.CollectionStartEvent):
                self.open({} if isinstance(event, yaml.MappingStartEvent) else [], event)
            elif isinstance(event, yaml.AliasEvent):
                self.check(event, None)
            elif isinstance(event, yaml.DocumentStartEvent) and self.root:
                raise self.refusal(event, "a second document begins; a file holds one")
        return self.root[0] if self.root else None

    def scalar(self, event: yaml.ScalarEvent) -> None:
        self.check(event, event.tag)
        text: str = event.value
        top = self.stack[-1]
        if self.keys[-1] is not None or isinstance(top, list):
            self.put(scalar(text) if event.implicit[0] else text)
        elif text in top:
            raise self.refusal(event, f"field {text!r} is given twice")
        else:
            self.keys[-1] = text

    def put(self, value: Plain) -> None:
        top, key = self.stack[-1], self.keys[-1]
        if isinstance(top, list):
            top.append(value)
        elif key is not None:
            top[key] = value
            self.keys[-1] = None

    def open(self, value: list[Plain] | dict[str, Plain], event: yaml.CollectionStartEvent) -> None:
        self.check(event, event.tag)
        if len(self.stack) > DEEPEST:
            raise self.refusal(event, f"nested deeper than {DEEPEST} levels")
        if isinstance(self.stack[-1], dict) and self.keys[-1] is None:
            raise self.refusal(event, "a field's name must be a string")
        self.put(value)
        self.stack.append(value)
        self.keys.append(None)

    def check(self, event: yaml.NodeEvent, tag: str | None) -> None:
        if event.anchor is not None:
            raise self.refusal(event, "anchors and aliases (& and *) are not taken; write the value out")
        if tag is not None:
            raise self.refusal(event, f"tags are not taken; found {tag}")

    def refusal(self, event: yaml.Event, problem: str) -> InputError:
        mark = event.start_mark
        return InputError(f"{self.where}: {f'line {mark.line + 1}: ' if mark else ''}{problem}")


def scalar(text: str) -> Plain:
    """What an unquoted scalar means.

    >>> scalar("200"), scalar("2e8"), scalar("200 MB"), scalar("true"), scalar("no"), scalar("")
    (200, 200000000.0, '200 MB', True, 'no', None)
    """
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _FLOAT.fullmatch(text):
        return float(text.replace(".inf", "inf").replace(".nan", "nan") if text[-1].isalpha() else text)
    return text


def write(document: dict[str, Plain]) -> str:
    """The YAML text of a document: one field a line at the top, and what fits a line on one.

    >>> print(write({"schema": "planner/x@1", "kv": [{"layer": 0, "bits": 1e-5}, "no"]}), end="")
    schema: planner/x@1
    kv: [{layer: 0, bits: 1.0e-05}, "no"]
    """
    return "\n".join([*_block(document), ""])


def _block(value: Plain) -> list[str]:
    """The lines of a value, each of its parts on one line if it fits there."""
    lines: list[str] = []
    if isinstance(value, dict):
        for key, item in value.items():
            label = f"{quoted(key)}:"
            flow = _flow(item, LINE_WIDTH - len(label))
            lines += [f"{label} {flow}"] if flow is not None else [label, *(f"  {line}" for line in _block(item))]
    elif isinstance(value, list):
        for item in value:
            flow = _flow(item, LINE_WIDTH)
            first, *rest = [flow] if flow is not None else _block(item)
            lines += [f"- {first}", *(f"  {line}" for line in rest)]
    else:
        lines.append(_leaf(value))
    return lines


def _flow(value: Plain, width: int) -> str | None:
    """The value on one line of at most `width` characters, or None."""
    if isinstance(value, dict):
        parts: list[str] = []
        for key, item in value.items():
            text = _flow(item, width)
            if text is None:
                return None
            parts.append(f"{quoted(key)}: {text}")
            width -= len(parts[-1]) + 2
            if width < 0:
                return None
        return f"{{{', '.join(parts)}}}"
    if isinstance(value, list):
        parts = []
        for item in value:
            text = _flow(item, width)
            if text is None:
                return None
            parts.append(text)
            width -= len(text) + 2
            if width < 0:
                return None
        return f"[{', '.join(parts)}]"
    return _leaf(value)


def _leaf(value: bool | int | float | str | None) -> str:
    if value is None:
        return "null"
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    text = float.__repr__(value)
    # Readers of YAML 1.1 take 1e-05 for a string and 1.0e-05 for a number.
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def quoted(text: str) -> str:
    """A string as a scalar that reads back as itself, in quotes where it needs them.

    >>> print(quoted("rotated"), quoted("no"), quoted("12e4"), quoted("a: b"))
    rotated "no" "12e4" "a: b"
    """
    if _BARE.fullmatch(text) and text.lower() not in _READ_OTHERWISE:
        return text
    return f'"{"".join(map(_escaped, text))}"'


def _escaped(char: str) -> str:
    if char in _ESCAPES:
        return _ESCAPES[char]
    if char.isprintable():
        return char
    if "\ud800" <= char <= "\udfff":
        raise InputError(f"the character {char!a} is half of a surrogate pair, which no text file can hold")
    return f"\\U{ord(char):08x}"
