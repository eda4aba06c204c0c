"""Passes and their options as one line of text: `uniform-kv{tokens=64,128},assign`.

A pass is a frozen dataclass with a `name`; its fields are its options, so nothing is declared twice. Options and the
values of a list are set apart by commas, semicolons or spaces: what has no `=` belongs to the option before it.
"""

import re
from collections.abc import Sequence
from dataclasses import fields
from typing import ClassVar, Protocol, TypeVar, get_args, get_origin, get_type_hints

from planner.errors import InputError, PlannerError
from planner.mismatch import Mismatch, did_you_mean
from planner.serde import codec
from planner.yaml_text import Plain, scalar


class Named(Protocol):
    """What every pass class has: the name it goes by on a command line."""

    name: ClassVar[str]


P = TypeVar("P", bound=Named)

_PASS = re.compile(r"\s*([A-Za-z][\w-]*)\s*(?:\{([^{}]*)\}\s*)?(?:,|$)")


def parse_passes(spec: str, known: Sequence[type[P]]) -> tuple[P, ...]:
    """The passes that a spec names, out of those known; an InputError begins with `--passes`.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class UniformKV:
    ...     name: ClassVar[str] = "uniform-kv"
    ...     tokens: tuple[int, ...] = (128,)
    ...     sinks: int = 4
    >>> parse_passes("uniform-kv{tokens=64,128,sinks=2},uniform-kv", (UniformKV,))
    (UniformKV(tokens=(64, 128), sinks=2), UniformKV(tokens=(128,), sinks=4))
    >>> parse_passes("uniform-kv{token=64}", (UniformKV,))
    Traceback (most recent call last):
    planner.errors.InputError: --passes: uniform-kv has no option 'token'; did you mean 'tokens'?
    """
    by_name = {kind.name: kind for kind in known}
    passes: list[P] = []
    at = 0
    while at < len(spec):
        found = _PASS.match(spec, at)
        if found is None:
            raise InputError(
                f"--passes: cannot read {spec[at:]!r}; write name{{option=value,value}},name with names of "
                f"{', '.join(by_name)}"
            )
        name, options = found[1], found[2] or ""
        if name not in by_name:
            raise InputError(f"--passes: unknown pass {name!r}{did_you_mean(name, by_name)}")
        passes.append(_built(by_name[name], options))
        at = found.end()
    if not passes or spec.rstrip().endswith(","):
        raise InputError(f"--passes: expected a pass at the end of {spec!r}; known: {', '.join(by_name)}")
    return tuple(passes)


def _built(kind: type[P], text: str) -> P:
    """One pass with the options of the text between its braces."""
    hints = get_type_hints(kind)
    names = {own.name for own in fields(kind)}  # type: ignore[arg-type]  # passes are dataclasses
    given: dict[str, list[str]] = {}
    option = ""
    for word in re.split(r"[,;\s]+", text.strip(" ,;")) if text.strip(" ,;") else ():
        key, equals, value = word.partition("=")
        if equals:
            option = key.replace("-", "_")
            if option not in names:
                shown = sorted(name.replace("_", "-") for name in names)
                raise InputError(f"--passes: {kind.name} has no option {key!r}{did_you_mean(key, shown)}")
            if option in given:
                raise InputError(f"--passes: {kind.name}: option {key!r} is given twice")
            given[option] = [value] if value else []
        elif not option:
            raise InputError(f"--passes: {kind.name}: {word!r} belongs to no option; write option={word}")
        else:
            given[option].append(word)
    try:
        return kind(**{name: _value(hints[name], words, name) for name, words in given.items()})
    except Mismatch as mismatch:
        raise InputError(f"--passes: {kind.name}{mismatch.path}: {mismatch.problem}") from mismatch
    except PlannerError as error:
        raise InputError(f"--passes: {kind.name}: {error}") from error


def _value(hint: object, words: list[str], name: str) -> object:
    many = get_origin(hint) is tuple
    strings = str in (get_args(hint) if many else (hint,))
    values: list[Plain] = [word if strings else scalar(word) for word in words]
    if not many and len(values) != 1:
        raise Mismatch(f"expected one value, found {len(values)}").under(f".{name}")
    try:
        return codec(hint).decode(values if many else values[0])
    except Mismatch as mismatch:
        raise mismatch.under(f".{name}") from None
