"""Any frozen dataclass as a YAML or JSON document and back: `load(dump(x), type(x), "x.yaml") == x`.

A document begins with its schema, as `schema: planner/plan@1`. Reading is strict: an unknown, missing or mistyped
field is an InputError that says where in the document, what was found and what would do. What type hints mean there:

    a dataclass                      a mapping of its fields
    A | B of dataclasses             the mapping begins `kind: a`, the class's name; no other class can be named
    tuple[A, ...], frozenset[A]      a list; a set's in the order of its text
    tuple[A, B]                      a list of two; for dataclasses that share no field, one mapping of both
    tuple[tuple[A, B], ...]          for such dataclasses: every B once, and every A with the number of its B
    Mapping[str, A], Mapping[K, A]   a mapping; a list of [key, value]
    X | None, Literal, Path, str, int, float, bool
"""

import json
import re
from collections.abc import Mapping
from dataclasses import is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Literal, TypeVar, Union, get_args, get_origin

from planner.codecs import (
    EXPECTED,
    Codec,
    EntriesCodec,
    ExactCodec,
    ItemsCodec,
    LiteralCodec,
    MergedCodec,
    NamedCodec,
    NumberCodec,
    OptionalCodec,
    PathCodec,
    RecordCodec,
    RowCodec,
    SetCodec,
    SharedCodec,
    TaggedCodec,
)
from planner.errors import InputError
from planner.files import read_text, write_text
from planner.mismatch import Mismatch, kebab, shown
from planner.upgrades import UPGRADES, VERSIONS
from planner.yaml_text import Plain, parse, write

T = TypeVar("T")
_NOT_YAML = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")


def schema(kind: type) -> str:
    """The tag a document of this type begins with.

    >>> from planner.profile import ModelProfile
    >>> schema(ModelProfile)
    'planner/model-profile@1'
    """
    name = kebab(kind)
    return f"planner/{name}@{VERSIONS.get(name, 1)}"


def dump(value: object) -> str:
    """The YAML document of a dataclass; equal values give the same text.

    >>> from planner.plan import Interval
    >>> print(dump(Interval(0.05, 0.04, 1e-05)), end="")
    schema: planner/interval@1
    value: 0.05
    low: 0.04
    high: 1.0e-05
    """
    return write(document(value))


def dump_json(value: object) -> str:
    """The same document as JSON, which is YAML too: what only JSON takes unescaped is escaped."""
    text = json.dumps(document(value), indent=1, ensure_ascii=False, allow_nan=False)
    return _NOT_YAML.sub(lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


def dump_file(value: object, path: Path) -> None:
    """Write the YAML document whole, in one step."""
    write_text(dump(value), path)


def load(text: str, kind: type[T], where: str) -> T:
    """The value a YAML or JSON document holds; errors begin with `where`.

    >>> from planner.goal import Goal
    >>> load("schema: planner/goal@1\\nminimize: loss_nats", Goal, "goal.yaml")
    Traceback (most recent call last):
    planner.errors.InputError: goal.yaml: $.minimize: unknown field; did you mean 'minimise'?
    """
    return build(parse(text, where), kind, where)


def load_file(path: Path, kind: type[T]) -> T:
    """The value a file holds."""
    return load(read_text(path), kind, str(path))


def document(value: object) -> dict[str, Plain]:
    """The document of a dataclass as plain values.

    A value that its own type hints forbid, NaN included, is a bug of ours and a TypeError.
    """
    tag = schema(type(value))
    try:
        body = codec(type(value)).encode(value)
    except Mismatch as mismatch:
        raise TypeError(f"{tag}: ${mismatch.path}: {mismatch.problem}") from mismatch
    if not isinstance(body, dict):
        raise TypeError(f"{tag}: only a dataclass is a document, not {body!r}")
    return {"schema": tag, **body}


def build(data: Plain, kind: type[T], where: str) -> T:
    """The value of a document that is already plain values."""
    wanted = schema(kind)
    if not isinstance(data, dict):
        raise InputError(f"{where}: expected a document that begins 'schema: {wanted}', found {shown(data)}")
    while (found := data.get("schema")) != wanted:
        if not isinstance(found, str) or found not in UPGRADES:
            raise InputError(f"{where}: $.schema: expected {wanted}, found {shown(found)}")
        data = UPGRADES[found](data)
    try:
        value = codec(kind).decode({name: item for name, item in data.items() if name != "schema"})
    except Mismatch as mismatch:
        place = "" if mismatch.self_located else f"${mismatch.path}: "
        raise InputError(f"{where}: {place}{mismatch.problem}") from mismatch
    if not isinstance(value, kind):
        raise TypeError(f"{wanted}: only a dataclass is a document")
    return value


def codec(hint: object) -> Codec:
    """The codec of a type hint, made once; TypeError for a hint that documents do not know.

    >>> codec(tuple[int, ...]).decode([1, 2])
    (1, 2)
    """
    if hint not in _CODECS:
        _CODECS[hint] = _made(hint)
    return _CODECS[hint]


_CODECS: dict[object, Codec] = {}


def _made(hint: object) -> Codec:
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(hint, type) and hint in EXPECTED:
        return NumberCodec() if hint is float else ExactCodec(hint)
    if hint is Path:
        return PathCodec()
    if isinstance(hint, type) and is_dataclass(hint):
        return RecordCodec(hint, codec)
    if origin is Literal:
        return LiteralCodec(args)
    if origin in (Union, UnionType):
        return _optional_or_tagged(args)
    if origin is tuple and len(args) == 2 and args[1] is ...:
        of = codec(args[0])
        return SharedCodec(of) if isinstance(of, MergedCodec) else ItemsCodec(of)
    if origin is tuple:
        parts = tuple(codec(arg) for arg in args)
        first, last = parts[0], parts[-1]
        if len(parts) == 2 and isinstance(first, RecordCodec) and isinstance(last, RecordCodec):
            return MergedCodec(first, last) if first.names.isdisjoint(last.names) else RowCodec(parts)
        return RowCodec(parts)
    if origin is frozenset:
        return SetCodec(codec(args[0]))
    if origin is Mapping:
        return (
            NamedCodec(codec(args[1])) if args[0] is str else EntriesCodec(RowCodec((codec(args[0]), codec(args[1]))))
        )
    raise TypeError(f"documents do not know how to hold a {hint}")


def _optional_or_tagged(args: tuple[object, ...]) -> Codec:
    """The codec of a union: of one type and None, or of dataclasses."""
    inner = tuple(codec(arg) for arg in args if arg is not NoneType)
    records = tuple(part for part in inner if isinstance(part, RecordCodec))
    if len(inner) > 1 and len(records) < len(inner):
        raise TypeError(f"documents hold unions of dataclasses only, not of {args}")
    of = inner[0] if len(inner) == 1 else TaggedCodec(records)
    return OptionalCodec(of) if NoneType in args else of
