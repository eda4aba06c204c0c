"""Candidates that another one of their site matches or beats in everything are dropped.

Whole price vectors are compared, not only the rows of this goal, and only candidates that no relation between sites can
tell apart: a dearer candidate may be the one that lets its layer share a kernel. What sites share can only go at all of
them: a kernel class that another one matches or beats at every head of its layer that offers it. Of equals the earlier
stays. Whatever limits follow, an optimum is left: where it took what is dropped, what beat that fits as well.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from planner.dominance import Labelled, superfluous_labels, undominated
from planner.pipeline import PassContext
from planner.space import AtMostDistinct, Attribute, Requires, Site, Space, attribute

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Mark:
    """What one constraint sees of one site's candidates: equal numbers are equal to it, at all sites that it limits.

    `constraint` is its number. Labels are values of an attribute; a Requires only sees whether it names a candidate.
    Where having no value does not count, that is told apart as well, by a mark of its own: what has a value must not
    stand in for what has none.
    """

    constraint: int
    labels: bool
    numbers: Ints


@dataclass(frozen=True, slots=True)
class PruneDominated:
    """Drops candidates that others match or beat in every price: at their site, or at all that share a limit."""

    name: ClassVar[str] = "prune-dominated"

    def run(self, space: Space, ctx: PassContext) -> Space:
        table = ctx.price(space)
        usage = dict(zip(space.sites, np.split(table.usage, np.cumsum(table.groups)[:-1]), strict=True))
        marks = told_apart(space)
        kept = {
            site: np.flatnonzero(undominated(own, cells(len(own), (mark.numbers for mark in marks[site]))))
            for site, own in usage.items()
        }
        while drop_labels(usage, marks, kept):
            pass  # Once more: where relations share sites, what one dropped may be what kept another from it.
        return space.narrow(lambda site, choices: tuple(choices[i] for i in kept[site].tolist()))


def told_apart(space: Space) -> dict[Site, list[Mark]]:
    """For every site what each constraint on it sees."""
    marks: dict[Site, list[Mark]] = {site: [] for site in space.sites}
    # Sites of a layer mostly share one tuple of candidates: its values are read once.
    read: dict[tuple[int, Attribute], tuple[object, ...]] = {}
    for number, constraint in enumerate(space.constraints):
        if isinstance(constraint, Requires):
            for site, named in ((constraint.site, constraint.choices), (constraint.other, constraint.other_choices)):
                seen = [choice in named for choice in space.candidates[site]]
                marks[site].append(Mark(number, False, np.array(seen, dtype=np.int64)))
            continue
        values: dict[object, int] = {}
        known: dict[int, Ints] = {}
        for site in constraint.sites:
            choices = space.candidates[site]
            if id(choices) not in known:
                key = id(choices), constraint.attribute
                if key not in read:
                    read[key] = tuple(attribute(choice, constraint.attribute) for choice in choices)
                known[id(choices)] = np.array([values.setdefault(value, len(values)) for value in read[key]])
            marks[site].append(Mark(number, True, known[id(choices)]))
            if None in values and isinstance(constraint, AtMostDistinct):
                valueless = known[id(choices)] == values[None]
                marks[site].append(Mark(-1 - number, False, valueless.astype(np.int64)))
    return marks


def cells(count: int, seen: Iterable[Ints]) -> Ints:
    """For each of so many candidates a number: equal where all that is seen is.

    >>> cells(3, [np.array([4, 4, 5]), np.array([1, 0, 1])]).tolist(), cells(2, []).tolist()
    ([1, 0, 2], [0, 0])
    """
    result = np.zeros(count, dtype=np.int64)
    for numbers in seen:
        pairs = result * (int(numbers.max()) + 1) + numbers
        result = np.unique(pairs, return_inverse=True)[1]
    return result


def drop_labels(usage: dict[Site, Floats], marks: dict[Site, list[Mark]], kept: dict[Site, Ints]) -> bool:
    """Take from `kept` the candidates whose labels another one replaces at all sites of a constraint; whether any are.

    What replaces them looks the same to every other constraint.
    """
    groups: dict[int, list[Site]] = {}
    for site, seen in marks.items():
        for mark in seen:
            if mark.labels:
                groups.setdefault(mark.constraint, []).append(site)
    dropped = False
    for constraint, sites in groups.items():
        labelled = []
        for site in sites:
            own = kept[site]
            others = [mark.numbers[own] for mark in marks[site] if mark.constraint != constraint]
            (label,) = (mark.numbers[own] for mark in marks[site] if mark.constraint == constraint)
            labelled.append(Labelled(usage[site][own], label, cells(len(own), others)))
        superfluous = superfluous_labels(labelled)
        if len(superfluous):
            dropped = True
            for site, each in zip(sites, labelled, strict=True):
                kept[site] = kept[site][~np.isin(each.label, superfluous)]
    return dropped
