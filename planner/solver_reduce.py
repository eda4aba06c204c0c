"""Drops what cannot matter before anything is solved: limits nothing can reach, candidates no best choice needs."""

from dataclasses import replace

import numpy as np

from planner.solver_problem import Bools, Floats, Ints, Problem, cells, keep_only

# Sums of a thousand floats are off by less than this share of their terms; closer calls are left to the solver.
ROUNDING = 1e-9
# Comparing all pairs of more candidates than this costs more than it saves.
LARGEST_COMPARED = 2048


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
    return replace(keep_only(problem, kept), limits=limits), kept


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
