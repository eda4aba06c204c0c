"""Drops what cannot matter before anything is solved: limits nothing can reach, candidates no best choice needs."""

from dataclasses import replace
from itertools import chain
from math import comb

import numpy as np

from planner.dominance import Labelled, superfluous_labels
from planner.solver_problem import Bools, Floats, Ints, Problem, cells, keep_only

# Sums of a thousand floats are off by less than this share of their terms; closer calls are left to the solver.
ROUNDING = 1e-9
# Comparing all pairs of more candidates than this costs more than it saves.
LARGEST_COMPARED = 2048
# With fewer label sets, times sites, comparing labels costs more than it saves.
FEW_LABELLED = 20_000


def reduce(problem: Problem) -> tuple[Problem, list[Ints]] | None:
    """The smaller problem and which candidates of each site it kept; None where some limit cannot be kept at all."""
    least = np.minimum.reduceat(problem.usage, problem.starts, axis=0)
    most = np.maximum.reduceat(problem.usage, problem.starts, axis=0)
    scale = np.abs(problem.constant) + most.sum(axis=0) + ROUNDING
    room = problem.limits - problem.constant - least.sum(axis=0)
    if (room < -ROUNDING * scale).any():
        return None
    unreachable = room > (most - least).sum(axis=0) + ROUNDING * scale
    limits = np.where(unreachable, np.inf, problem.limits)
    excess = problem.usage - np.repeat(least, problem.groups, axis=0)
    usable = (excess <= np.where(unreachable, np.inf, room + ROUNDING * scale)).all(axis=1)
    rows = sorted({*np.flatnonzero(np.isfinite(limits)).tolist(), *problem.minimise, *problem.tie_break})
    relevant = np.ascontiguousarray(problem.usage[:, rows])
    kept: list[Ints] = []
    for start, count, cell in zip(problem.starts, problem.groups, cells(problem), strict=True):
        own = slice(start, start + count)
        keep = usable[own] & ~dominated(relevant[own], np.array(cell), usable[own])
        kept.append(np.flatnonzero(keep).astype(np.int64))
        if not len(kept[-1]):
            return None
    drop_labels(problem, relevant, kept)
    return replace(keep_only(problem, kept), limits=limits), kept


def drop_labels(problem: Problem, usage: Floats, kept: list[Ints]) -> None:
    """Take from `kept` the candidates of labels that another one replaces at all sites of an AtMost.

    Only where no other relation is on these sites.
    """
    related = np.zeros(len(problem.groups), dtype=np.int64)
    for relation in problem.at_most:
        related[list(relation.everyone)] += 1
    for rule in problem.requires:
        related[[rule.site, rule.other]] += 1
    starts = problem.starts
    for relation in problem.at_most:
        count = len(set(chain.from_iterable(relation.labels)))
        sets = comb(count, min(relation.most, count))
        if sets * len(relation.sites) < FEW_LABELLED or (related[list(relation.sites)] > 1).any():
            continue
        group = []
        for site, labels in zip(relation.sites, relation.labels, strict=True):
            own = kept[site]
            group.append(Labelled(usage[starts[site] + own], np.array(labels)[own], np.zeros_like(own)))
        superfluous = superfluous_labels(group)
        for site, each in zip(relation.sites, group, strict=True):
            kept[site] = kept[site][~np.isin(each.label, superfluous)]


def dominated(usage: Floats, cell: Ints, usable: Bools) -> Bools:
    """Candidates that another usable one of the same cell matches or beats in every row; of equals the first stays.

    >>> usage = np.array([[1.0, 2.0], [2.0, 2.0], [1.0, 2.0], [0.0, 9.0]])
    >>> dominated(usage, np.zeros(4, dtype=np.int64), np.ones(4, dtype=bool)).tolist()
    [False, True, True, False]
    """
    count = len(usage)
    if count == 1 or count > LARGEST_COMPARED:
        return np.zeros(count, dtype=bool)
    beats = (cell[:, None] == cell) & usable[:, None]
    for row in range(usage.shape[1]):
        beats &= usage[:, None, row] <= usage[:, row]
    np.fill_diagonal(beats, False)
    # Of two that beat each other, the earlier one does.
    beats &= ~(beats.T & np.tri(count, dtype=bool))
    result: Bools = beats.any(axis=0)
    return result
