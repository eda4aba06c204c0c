"""The problem the solver takes: pick one candidate at every site, within limits on what the picks use together.

    minimise    max over the `minimise` rows of  constant + sum of usage
    such that   constant + sum of usage <= limit, row by row
                AtMost:  some sites use at most so many different labels, or as many as another site pays for
                Implies: where one site takes one of these, another takes one of those

Rows are resources of any unit; several rows under `minimise` are resources that overlap (the slowest one counts).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from planner.errors import InputError

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class AtMost:
    """The sites together use at most `most` labels; `labels` has one label for every candidate of each site.

    Where labels have a price, `payer` is a site of its own whose candidates pay for so many of them each (`paid`), and
    the sites use no more than its candidate pays for.
    """

    sites: tuple[int, ...]
    labels: tuple[tuple[int, ...], ...]
    most: int
    payer: int | None = None
    paid: tuple[int, ...] = ()

    @property
    def everyone(self) -> tuple[int, ...]:
        """The sites, and the one that pays."""
        return self.sites if self.payer is None else (*self.sites, self.payer)

    def room(self, chosen: Sequence[int] | Ints) -> int:
        """Labels there may be beside a whole choice."""
        return self.most if self.payer is None else min(self.most, self.paid[chosen[self.payer]])


@dataclass(frozen=True, slots=True)
class Implies:
    """Where `site` takes one of `candidates`, `other` takes one of `other_candidates` (local indexes)."""

    site: int
    candidates: tuple[int, ...]
    other: int
    other_candidates: tuple[int, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Problem:
    """Candidates are numbered site by site: the first of site s is number `sum(groups[:s])` of `usage`.

    Picks that cost the same are told apart by the `tie_break` rows, lower being better, the first row first.
    """

    groups: tuple[int, ...]
    rows: tuple[str, ...]
    usage: Floats
    constant: Floats
    limits: Floats
    minimise: tuple[int, ...]
    at_most: tuple[AtMost, ...] = ()
    requires: tuple[Implies, ...] = ()
    tie_break: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.groups or min(self.groups) < 1:
            raise InputError(f"problem.groups: found {self.groups[:8]}; give every site at least one candidate")
        expected = (sum(self.groups), len(self.rows))
        for name, shape in (("usage", expected), ("constant", expected[1:]), ("limits", expected[1:])):
            array = getattr(self, name)
            if array.shape != shape:
                raise InputError(f"problem.{name}: found shape {array.shape}; {shape} fits the groups and rows")
            if np.isnan(array).any() or (name != "limits" and np.isinf(array).any()):
                raise InputError(f"problem.{name}: found a value that is no finite number")
        if self.usage.size and self.usage.min() < 0:
            raise InputError("problem.usage: found a negative value; move what is gained to the constant")
        if not self.minimise:
            raise InputError("problem.minimise: found no row; name at least one")
        if any(not 0 <= row < len(self.rows) for row in self.minimise + self.tie_break):
            raise InputError(f"problem: a row outside 0..{len(self.rows) - 1} is minimised or breaks ties")
        for relation in self.at_most:
            if relation.most < 1 or len(set(relation.sites)) != len(relation.sites):
                raise InputError(f"at_most: {relation.most} labels over {relation.sites}; at least 1, sites once")
            if any(not 0 <= s < len(self.groups) for s in relation.sites) or [len(x) for x in relation.labels] != [
                self.groups[s] for s in relation.sites
            ]:
                raise InputError(f"problem.at_most: sites {relation.sites[:8]} need one label for each candidate")
            if relation.payer is not None and (
                relation.payer in relation.sites
                or not 0 <= relation.payer < len(self.groups)
                or len(relation.paid) != self.groups[relation.payer]
                or min(relation.paid) < 1
            ):
                raise InputError(
                    f"problem.at_most: payer {relation.payer} pays for {relation.paid[:8]} labels; another site with a"
                    " number of at least 1 for each of its candidates can"
                )
        for rule in self.requires:
            for site, local in ((rule.site, rule.candidates), (rule.other, rule.other_candidates)):
                if not 0 <= site < len(self.groups) or any(not 0 <= c < self.groups[site] for c in local):
                    raise InputError(f"problem.requires: found {rule}, which names a candidate that is not there")

    @property
    def starts(self) -> Ints:
        """Number of the first candidate of every site."""
        return np.concatenate(([0], np.cumsum(self.groups)[:-1])).astype(np.int64)

    @property
    def limited(self) -> tuple[int, ...]:
        """Rows that have a limit."""
        return tuple(int(r) for r in np.flatnonzero(np.isfinite(self.limits)))

    def totals(self, chosen: Sequence[int] | Ints) -> Floats:
        """What a choice uses of every row, correctly rounded whatever the order of the sites."""
        used = self.usage[self.starts + np.asarray(chosen, dtype=np.int64)]
        return np.array([math.fsum((self.constant[r], *used[:, r])) for r in range(len(self.rows))])

    def objective(self, totals: Floats) -> float:
        return float(max(totals[r] for r in self.minimise))

    def keeps(self, chosen: Sequence[int] | Ints) -> bool:
        """Whether a choice keeps every limit and relation, exactly."""
        return keeps_relations(self, chosen) and bool((self.totals(chosen) <= self.limits).all())


def keeps_relations(problem: Problem, chosen: Sequence[int] | Ints) -> bool:
    """Whether a choice keeps every AtMost and Implies."""
    for relation in problem.at_most:
        used = {labels[chosen[site]] for site, labels in zip(relation.sites, relation.labels, strict=True)}
        if len(used) > relation.room(chosen):
            return False
    return all(
        chosen[rule.site] not in rule.candidates or chosen[rule.other] in rule.other_candidates
        for rule in problem.requires
    )


def cells(problem: Problem) -> list[list[int]]:
    """For every candidate of every site the number of its cell: candidates that no relation tells apart share one.

    >>> usage = np.zeros((5, 1))
    >>> relation = AtMost(sites=(0, 1), labels=((7, 8, 7), (7, 7)), most=1)
    >>> cells(Problem((3, 2), ("loss",), usage, np.zeros(1), np.ones(1), (0,), at_most=(relation,)))
    [[0, 1, 0], [0, 0]]
    """
    marks: list[list[Sequence[int]]] = [[] for _ in problem.groups]
    for relation in problem.at_most:
        for site, labels in zip(relation.sites, relation.labels, strict=True):
            marks[site].append(labels)
        if relation.payer is not None:
            marks[relation.payer].append(relation.paid)
    for rule in problem.requires:
        for site, local in ((rule.site, frozenset(rule.candidates)), (rule.other, frozenset(rule.other_candidates))):
            marks[site].append([c in local for c in range(problem.groups[site])])
    result = []
    for count, columns in zip(problem.groups, marks, strict=True):
        numbers: dict[tuple[int, ...], int] = {}
        signatures = zip(*columns, strict=True) if columns else ((),) * count
        result.append([numbers.setdefault(signature, len(numbers)) for signature in signatures])
    return result


def keep_only(problem: Problem, kept: Sequence[Ints]) -> Problem:
    """The problem with only the candidates in `kept`, local indexes site by site, and the relations still in play."""
    local = [{int(old): new for new, old in enumerate(indexes)} for indexes in kept]

    def renumber(site: int, candidates: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(local[site][c] for c in candidates if c in local[site])

    at_most = (
        replace(
            a,
            labels=tuple(tuple(x[c] for c in kept[s]) for s, x in zip(a.sites, a.labels, strict=True)),
            paid=() if a.payer is None else tuple(a.paid[c] for c in kept[a.payer]),
        )
        for a in problem.at_most
    )
    requires = (
        Implies(i.site, renumber(i.site, i.candidates), i.other, renumber(i.other, i.other_candidates))
        for i in problem.requires
    )
    return Problem(
        groups=tuple(len(indexes) for indexes in kept),
        rows=problem.rows,
        usage=problem.usage[np.concatenate([start + i for start, i in zip(problem.starts, kept, strict=True)])],
        constant=problem.constant,
        limits=problem.limits,
        minimise=problem.minimise,
        at_most=tuple(a for a in at_most if len({x for own in a.labels for x in own}) > min((a.most, *a.paid))),
        requires=tuple(i for i in requires if i.candidates and len(set(i.other_candidates)) < len(kept[i.other])),
        tie_break=problem.tie_break,
    )
