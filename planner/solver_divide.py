"""Divides a problem whose relations span many sites: one window for all heads, one format for a whole model.

Such a relation ties most of the problem into one component, and prices alone then bound it badly: the best mix may be
half of one window and half of another. So its sides are solved as problems of their own, best bound first, as long as
they can still beat the best choice known.
"""

import heapq
from dataclasses import dataclass

import numpy as np

from planner.solver_branch import Builder, Relation, build, split
from planner.solver_dual import Bound, bound
from planner.solver_problem import Implies, Ints, Problem, keep_only
from planner.solver_reduce import reduce
from planner.solver_search import improve
from planner.solver_tree import Tree

# A relation is divided over if its component has this share of the sites, and it has at most so many sides.
WIDE_SHARE = 1 / 8
MOST_SIDES = 128
MOST_PARTS = 400
# Room for a tree that only has to offer good choices.
STRICTER_LEAVES = 4_000_000


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A problem with some candidates left, and which those are in the problem divided."""

    problem: Problem
    kept: tuple[Ints, ...]


@dataclass(frozen=True, slots=True, eq=False)
class Solved:
    """A part with its tree and bound, and the best choice found in it."""

    part: Part
    tree: Tree
    bound: Bound
    chosen: Ints | None


def start(problem: Problem, tree: Tree, dual: Bound, good_enough: float) -> Ints | None:
    """The best choice that exchanges lead to; where choices of the tree may break relations, from a stricter tree's."""
    if tree.exact:
        return improve(problem, tree, dual, good_enough)
    stricter = build(problem, STRICTER_LEAVES, possible=True)
    inner = None if stricter is None else bound(problem, stricter)
    if stricter is None or inner is None:
        return improve(problem, tree, dual, good_enough)
    return improve(problem, stricter, inner, good_enough)


def divide(problem: Problem, tree: Tree, dual: Bound, chosen: Ints | None, gap: float) -> tuple[Ints | None, float]:
    """The best choice and a lower bound after dividing over wide relations, until the gap is closed."""
    whole = Part(problem, tuple(np.arange(n) for n in problem.groups))
    best = np.inf if chosen is None else problem.objective(problem.totals(chosen))
    count = 0
    queue: list[tuple[float, int, Part, Solved | None]]
    queue = [(dual.value, count, whole, Solved(whole, tree, dual, chosen))]
    settled = np.inf
    for _ in range(MOST_PARTS):
        if not queue or queue[0][0] >= best - gap * abs(best):
            break
        key, _, part, solved = heapq.heappop(queue)
        if solved is None:
            solved = solve_part(part, gap, best)
            if solved is None:
                continue
            if solved.chosen is not None:
                candidate = np.array([own[c] for own, c in zip(solved.part.kept, solved.chosen, strict=True)])
                objective = problem.objective(problem.totals(candidate))
                if objective < best and problem.keeps(candidate):
                    chosen, best = candidate, objective
            key = max(key, solved.bound.value)
        relation = widest(solved.part.problem)
        if relation is None:
            settled = min(settled, key)
            continue
        for child, least in sides(solved, relation):
            count += 1
            heapq.heappush(queue, (max(key, least), count, child, None))
    return chosen, min([settled, best, *(key for key, *_ in queue)])


def solve_part(part: Part, gap: float, best: float) -> Solved | None:
    """Bound a part, and search it where it may hold something better; None where it holds no choice."""
    reduced = reduce(part.problem)
    if reduced is None:
        return None
    core, kept = reduced
    smaller = Part(core, tuple(outer[own] for outer, own in zip(part.kept, kept, strict=True)))
    tree = build(core)
    dual = None if tree is None else bound(core, tree)
    if tree is None or dual is None:
        return None
    hopeless = dual.value >= best
    chosen = None if hopeless else start(core, tree, dual, dual.value + gap * abs(dual.value))
    return Solved(smaller, tree, dual, chosen)


def widest(problem: Problem) -> Relation | None:
    """The relation to divide over: of a component with many sites, the one that leaves small parts in few sides."""
    builder = Builder(problem)
    for allowed, relations in split(builder.allowed, builder.relations):
        narrow = [r for r in relations if builder.branches(allowed, r) <= MOST_SIDES]
        if narrow and len(allowed) >= max(2, WIDE_SHARE * len(problem.groups)):
            return builder.best_to_branch(allowed, narrow)
    return None


def sides(solved: Solved, relation: Relation) -> list[tuple[Part, float]]:
    """The parts that keep the relation one way each, with a first bound from the prices of the whole."""
    problem, builder = solved.part.problem, Builder(solved.part.problem)
    excess = solved.tree.excess(solved.bound.costs(problem))
    result = []
    for allowed in builder.sides(builder.allowed, relation):
        kept = []
        for site, start_of in enumerate(problem.starts):
            own = np.isin(builder.cell[start_of : start_of + problem.groups[site]], allowed[site])
            kept.append(np.flatnonzero(own).astype(np.int64))
        if not all(len(own) for own in kept):
            continue
        touched = (relation.site, relation.other) if isinstance(relation, Implies) else relation.everyone
        least = max(float(excess[problem.starts[s] + kept[s]].min()) for s in touched)
        outer = tuple(before[own] for before, own in zip(solved.part.kept, kept, strict=True))
        result.append((Part(keep_only(problem, kept), outer), solved.bound.value + least))
    return result
