"""What was found instead of what was expected, in words: the parts of every message about bad input."""

import re
from collections.abc import Iterable
from difflib import get_close_matches


class Mismatch(Exception):
    """A value that does not fit its hint; `path` grows on the way out.

    Where `self_located` the problem itself says where: it comes from the noun that refused its fields.
    """

    def __init__(self, problem: str, self_located: bool = False) -> None:
        self.problem, self.path, self.self_located = problem, "", self_located

    def under(self, step: str) -> "Mismatch":
        self.path = step + self.path
        return self


def did_you_mean(found: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the nearest known one, or all of them.

    >>> did_you_mean("gaol", ("goal", "workload")), did_you_mean("x", ("goal", "workload"))
    ("; did you mean 'goal'?", '; known: goal, workload')
    """
    names = tuple(known)
    near = get_close_matches(found, names, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(names)}"


def kebab(kind: type) -> str:
    """A class's name in documents.

    >>> from planner.space import AtMostDistinct
    >>> kebab(AtMostDistinct)
    'at-most-distinct'
    """
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "-", kind.__name__).lower()


def shown(data: object) -> str:
    """What was found, in a few words.

    >>> shown("many"), shown(True), shown(None), shown([1])
    ("'many'", 'true', 'nothing', 'a list')
    """
    if isinstance(data, dict):
        return "a mapping"
    if isinstance(data, list):
        return "a list"
    text = "nothing" if data is None else str(data).lower() if isinstance(data, bool) else repr(data)
    return text if len(text) <= 60 else f"{text[:57]}..."
