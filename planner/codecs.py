"""How values of each shape are written as plain values, and strictly read back; planner.serde picks by type hint."""

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Protocol, get_type_hints

from planner.errors import PlannerError
from planner.mismatch import Mismatch, did_you_mean, kebab, shown
from planner.yaml_text import Plain


class Codec(Protocol):
    """Writes and reads the values of one hint; Mismatch where they are not."""

    def encode(self, value: object) -> Plain: ...

    def decode(self, data: Plain) -> object: ...


EXPECTED: Mapping[type, str] = {str: "a string", int: "a whole number", float: "a number", bool: "true or false"}


class ExactCodec:
    """A string, a whole number or a boolean, none of them taken for another."""

    def __init__(self, kind: type) -> None:
        self.kind = kind

    def encode(self, value: object) -> Plain:
        if isinstance(value, bool | int | str) and type(value) is self.kind:
            return value
        raise Mismatch(f"expected {EXPECTED[self.kind]}, found {shown(value)}")

    def decode(self, data: Plain) -> object:
        return self.encode(data)


class NumberCodec:
    """A finite number. A whole one stays an int: `repr` of what is loaded is that of what was dumped."""

    def encode(self, value: object) -> Plain:
        if type(value) is int:
            return value
        if isinstance(value, float) and float("-inf") < value < float("inf"):
            return float(value)
        raise Mismatch(f"expected a number, found {shown(value)}")

    def decode(self, data: Plain) -> object:
        return self.encode(data)


class PathCodec:
    def encode(self, value: object) -> Plain:
        return str(value)

    def decode(self, data: Plain) -> object:
        if isinstance(data, str) and data:
            return Path(data)
        raise Mismatch(f"expected a path, found {shown(data)}")


class LiteralCodec:
    def __init__(self, values: tuple[object, ...]) -> None:
        self.values = values

    def encode(self, value: object) -> Plain:
        if isinstance(value, str | int) and any(type(value) is type(v) and value == v for v in self.values):
            return value
        words = [v for v in self.values if isinstance(v, str)]
        near = get_close_matches(value, words, n=1) if isinstance(value, str) else []
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise Mismatch(f"expected one of {', '.join(map(str, self.values))}, found {shown(value)}{hint}")

    def decode(self, data: Plain) -> object:
        return self.encode(data)


class OptionalCodec:
    def __init__(self, inner: Codec) -> None:
        self.inner = inner

    def encode(self, value: object) -> Plain:
        return None if value is None else self.inner.encode(value)

    def decode(self, data: Plain) -> object:
        return None if data is None else self.inner.decode(data)


class RecordCodec:
    """A dataclass. Fields with a default may be left out by whoever writes by hand; dumping writes them all."""

    def __init__(self, kind: type, codec: Callable[[object], Codec]) -> None:
        hints = get_type_hints(kind)
        self.kind = kind
        own = [field for field in fields(kind) if field.init]
        self.parts = tuple((field.name, codec(hints[field.name])) for field in own)
        self.names = frozenset(field.name for field in own)
        self.needed = tuple(f.name for f in own if f.default is MISSING and f.default_factory is MISSING)

    def encode(self, value: object) -> dict[str, Plain]:
        if type(value) is not self.kind:
            raise Mismatch(f"expected a {self.kind.__name__}, found {shown(value)}")
        made: dict[str, Plain] = {}
        for name, part in self.parts:
            try:
                made[name] = part.encode(getattr(value, name))
            except Mismatch as mismatch:
                raise mismatch.under(f".{name}") from None
        return made

    def decode(self, data: Plain) -> object:
        if not isinstance(data, dict):
            raise Mismatch(f"expected a mapping, found {shown(data)}")
        refuse_unknown(data, self.names)
        return self.make(data)

    def make(self, data: dict[str, Plain]) -> object:
        """The dataclass of the fields it knows, whatever else the mapping holds."""
        made: dict[str, object] = {}
        for name, part in self.parts:
            if name in data:
                try:
                    made[name] = part.decode(data[name])
                except Mismatch as mismatch:
                    raise mismatch.under(f".{name}") from None
        if len(made) < len(self.parts):
            for name in self.needed:
                if name not in made:
                    raise Mismatch(f"field {name!r} is missing")
        try:
            return self.kind(**made)
        except PlannerError as error:
            raise Mismatch(str(error), self_located=True) from error


def refuse_unknown(data: dict[str, Plain], known: frozenset[str]) -> None:
    if not data.keys() <= known:
        unknown = next(name for name in data if name not in known)
        raise Mismatch(f"unknown field{did_you_mean(unknown, sorted(known))}").under(f".{unknown}")


class MergedCodec:
    """A pair of dataclasses that share no field name, as one mapping: where, and what is chosen there."""

    def __init__(self, first: RecordCodec, second: RecordCodec) -> None:
        self.first, self.second = first, second
        self.names = first.names | second.names

    def encode(self, value: object) -> Plain:
        if not isinstance(value, tuple) or len(value) != 2:
            raise Mismatch(f"expected a pair, found {shown(value)}")
        return {**self.first.encode(value[0]), **self.second.encode(value[1])}

    def decode(self, data: Plain) -> object:
        if not isinstance(data, dict):
            raise Mismatch(f"expected a mapping, found {shown(data)}")
        refuse_unknown(data, self.names)
        return self.first.make(data), self.second.make(data)


class SharedCodec:
    """Many of such pairs: every second that occurs is written once, and each first with the number of its second.

    A plan has thousands of sites and a few dozen choices: the document is a third as long, and shows the dozens.
    """

    def __init__(self, pair: MergedCodec) -> None:
        self.first, self.second = pair.first, pair.second
        if "value" in self.first.names:
            raise TypeError(f"{self.first.kind.__name__}.value would hide the number of its value")
        self.values = ItemsCodec(self.second)
        self.names = self.first.names | {"value"}

    def encode(self, value: object) -> Plain:
        if not isinstance(value, tuple):
            raise Mismatch(f"expected a tuple, found {shown(value)}")
        number: dict[object, int] = {}
        at: list[Plain] = []
        try:
            for first, second in value:
                at.append({**self.first.encode(first), "value": number.setdefault(second, len(number))})
        except Mismatch as mismatch:
            raise mismatch.under(f"[{len(at)}]") from None
        return {"values": self.values.encode(tuple(number)), "at": at}

    def decode(self, data: Plain) -> object:
        rows = data.get("at") if isinstance(data, dict) else None
        if not isinstance(data, dict) or not isinstance(rows, list):
            raise Mismatch(f"expected a mapping of values and at, found {shown(data)}")
        refuse_unknown(data, frozenset({"values", "at"}))
        try:
            values = self.values.decode(data.get("values"))
        except Mismatch as mismatch:
            raise mismatch.under(".values") from None
        pairs: list[tuple[object, object]] = []
        try:
            for row in rows:
                pairs.append(self.pair(row, values))
        except Mismatch as mismatch:
            raise mismatch.under(f".at[{len(pairs)}]") from None
        return tuple(pairs)

    def pair(self, row: Plain, values: tuple[object, ...]) -> tuple[object, object]:
        if not isinstance(row, dict):
            raise Mismatch(f"expected a mapping, found {shown(row)}")
        refuse_unknown(row, self.names)
        number = row.get("value")
        if type(number) is not int or not 0 <= number < len(values):
            raise Mismatch(f"expected the number of one of {len(values)} values, found {shown(number)}").under(".value")
        return self.first.make(row), values[number]


class TaggedCodec:
    """One of the dataclasses of a union, named by `kind`."""

    def __init__(self, records: tuple[RecordCodec, ...]) -> None:
        self.by_tag = {kebab(record.kind): record for record in records}
        self.by_kind = {record.kind: (tag, record) for tag, record in self.by_tag.items()}
        for record in records:
            if "kind" in record.names:
                raise TypeError(f"{record.kind.__name__}.kind would hide the tag of its union")

    def encode(self, value: object) -> Plain:
        if type(value) not in self.by_kind:
            raise Mismatch(f"expected one of {', '.join(self.by_tag)}, found {shown(value)}")
        tag, record = self.by_kind[type(value)]
        return {"kind": tag, **record.encode(value)}

    def decode(self, data: Plain) -> object:
        if not isinstance(data, dict):
            raise Mismatch(f"expected a mapping that begins with its kind, found {shown(data)}")
        if "kind" not in data:
            raise Mismatch(f"field 'kind' is missing; one of {', '.join(self.by_tag)}")
        tag = data["kind"]
        record = self.by_tag.get(tag) if isinstance(tag, str) else None
        if record is None:
            hint = did_you_mean(tag, self.by_tag) if isinstance(tag, str) else ""
            raise Mismatch(f"unknown kind {shown(tag)}{hint}").under(".kind")
        refuse_unknown(data, record.names | {"kind"})
        return record.make(data)


class ItemsCodec:
    """A tuple of any length."""

    def __init__(self, item: Codec) -> None:
        self.item = item

    def encode(self, value: object) -> list[Plain]:
        if not isinstance(value, tuple):
            raise Mismatch(f"expected a tuple, found {shown(value)}")
        items: list[Plain] = []
        try:
            for item in value:
                items.append(self.item.encode(item))
        except Mismatch as mismatch:
            raise mismatch.under(f"[{len(items)}]") from None
        return items

    def decode(self, data: Plain) -> tuple[object, ...]:
        if not isinstance(data, list):
            raise Mismatch(f"expected a list, found {shown(data)}")
        items: list[object] = []
        try:
            for item in data:
                items.append(self.item.decode(item))
        except Mismatch as mismatch:
            raise mismatch.under(f"[{len(items)}]") from None
        return tuple(items)


class SetCodec:
    """A frozenset, in the order of its text."""

    def __init__(self, item: Codec) -> None:
        self.items = ItemsCodec(item)

    def encode(self, value: object) -> Plain:
        if not isinstance(value, frozenset):
            raise Mismatch(f"expected a frozenset, found {shown(value)}")
        return sorted(self.items.encode(tuple(value)), key=repr)

    def decode(self, data: Plain) -> object:
        return frozenset(self.items.decode(data))


class RowCodec:
    """A list of a fixed length, each place with its own type."""

    def __init__(self, parts: tuple[Codec, ...]) -> None:
        self.parts = parts

    def encode(self, value: object) -> Plain:
        if not isinstance(value, tuple) or len(value) != len(self.parts):
            raise Mismatch(f"expected a tuple of {len(self.parts)}, found {shown(value)}")
        row: list[Plain] = []
        try:
            for part, item in zip(self.parts, value, strict=True):
                row.append(part.encode(item))
        except Mismatch as mismatch:
            raise mismatch.under(f"[{len(row)}]") from None
        return row

    def decode(self, data: Plain) -> tuple[object, ...]:
        if not isinstance(data, list) or len(data) != len(self.parts):
            length = f" of {len(data)}" if isinstance(data, list) else ""
            raise Mismatch(f"expected a list of {len(self.parts)}, found {shown(data)}{length}")
        row: list[object] = []
        try:
            for part, item in zip(self.parts, data, strict=True):
                row.append(part.decode(item))
        except Mismatch as mismatch:
            raise mismatch.under(f"[{len(row)}]") from None
        return tuple(row)


class NamedCodec:
    """A mapping from strings."""

    def __init__(self, item: Codec) -> None:
        self.item = item

    def encode(self, value: object) -> Plain:
        if not isinstance(value, Mapping):
            raise Mismatch(f"expected a mapping, found {shown(value)}")
        made: dict[str, Plain] = {}
        for name, item in value.items():
            try:
                made[str(name)] = self.item.encode(item)
            except Mismatch as mismatch:
                raise mismatch.under(f".{name}") from None
        return made

    def decode(self, data: Plain) -> object:
        if not isinstance(data, dict):
            raise Mismatch(f"expected a mapping, found {shown(data)}")
        made: dict[str, object] = {}
        for name, item in data.items():
            try:
                made[name] = self.item.decode(item)
            except Mismatch as mismatch:
                raise mismatch.under(f".{name}") from None
        return made


class EntriesCodec:
    """A mapping from anything else, as a list of [key, value] in its own order."""

    def __init__(self, row: RowCodec) -> None:
        self.row = row

    def encode(self, value: object) -> Plain:
        if not isinstance(value, Mapping):
            raise Mismatch(f"expected a mapping, found {shown(value)}")
        return ItemsCodec(self.row).encode(tuple(value.items()))

    def decode(self, data: Plain) -> object:
        if not isinstance(data, list):
            raise Mismatch(f"expected a list of [key, value], found {shown(data)}")
        entries: list[tuple[object, ...]] = []
        try:
            for item in data:
                entries.append(self.row.decode(item))
        except Mismatch as mismatch:
            raise mismatch.under(f"[{len(entries)}]") from None
        made = {key: value for key, value in entries}
        if len(made) < len(data):
            raise Mismatch("the same key is given twice")
        return made
