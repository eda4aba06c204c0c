"""Solves over whole choices of components: each becomes one candidate, and relations are gone.

What is lost is every choice that is not listed. What is left is a plain knapsack, on which exchanges and branch and
bound do far better than on candidates tied by relations.
"""

import numpy as np

from planner.solver_branch import build
from planner.solver_dual import Bound, bound
from planner.solver_exact import prove
from planner.solver_problem import Ints, Problem, keeps_relations
from planner.solver_search import improve, moves_of
from planner.solver_tree import Tree


def combine(
    problem: Problem, tree: Tree, dual: Bound, chosen: Ints | None, gap: float, seed: int, effort: float
) -> Ints | None:
    """The best choice made of listed choices of components, the given one's included; None if none keeps the limits."""
    listed: list[dict[bytes, Ints]] = [{} for _ in tree.components]
    moves = moves_of(problem, tree, dual)
    for own in () if chosen is None else (chosen,):
        for number, sites in enumerate(tree.components):
            listed[number][own[sites].tobytes()] = own[sites]
    for number, own in zip(moves.owner.tolist(), moves.choices, strict=True):
        listed[number].setdefault(own.tobytes(), own)
    for number, sites in enumerate(tree.components):
        if len(sites) == 1:
            for local in np.arange(problem.groups[int(sites[0])]).reshape(-1, 1):
                listed[number].setdefault(local.tobytes(), local)
    usage = [
        problem.usage[problem.starts[sites] + own].sum(axis=0)
        for sites, choices in zip(tree.components, listed, strict=True)
        for own in choices.values()
    ]
    groups = tuple(len(choices) for choices in listed)
    plain = Problem(
        groups, problem.rows, np.array(usage), problem.constant, problem.limits, problem.minimise, (), (),
        problem.tie_break,
    )  # fmt: skip
    plain_tree = build(plain)
    plain_dual = None if plain_tree is None else bound(plain, plain_tree)
    if plain_tree is None or plain_dual is None:
        return chosen
    start = None if chosen is None else np.zeros(len(groups), dtype=np.int64)
    goal = plain_dual.value + gap * abs(plain_dual.value)
    found = [start, improve(plain, plain_tree, plain_dual, goal)]
    best = min((c for c in found if c is not None), key=lambda c: plain.objective(plain.totals(c)), default=None)
    if best is None or plain.objective(plain.totals(best)) > goal:
        proof = prove(plain, plain_tree, plain_dual, best, gap, seed, effort)
        best = best if proof.chosen is None else proof.chosen
    if best is None:
        return chosen
    result = np.empty(len(problem.groups), dtype=np.int64)
    for sites, choices, pick in zip(tree.components, listed, best.tolist(), strict=True):
        result[sites] = list(choices.values())[pick]
    return result if keeps_relations(problem, result) and problem.keeps(result) else chosen
