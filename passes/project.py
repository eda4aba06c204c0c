"""The nearest plan that a runtime can carry to one that it cannot.

Near is meant in prices. A choice stands as far from the one that was planned for its site as their losses, bytes and
seconds per token differ, each as a share of what the plan takes of it in all; the projection is the choice for all
sites, within the runtime's formats and relations and the goal's limits, that stands nearest in sum. So a site whose
choice is carried keeps it, unless a relation (one window for the model, one format for q, k and v) moves it. Where no
choice keeps the limits, the nearest without them is taken, and said to be.

It is a stopgap: a plan solved for inside what the runtime carries is never worse by the goal.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from passes.assign import EFFORT, GAP, as_problem, pick
from passes.legalise import legal_choices
from passes.spans import offer
from planner import solver
from planner.errors import InputError
from planner.pipeline import PassContext
from planner.prices import LOSS, PriceTable, stages
from planner.solver_problem import Problem
from planner.space import Choice, Chosen, Full, KvChoice, Site, Space, Window

Floats = NDArray[np.float64]

LEAST_NATS = 1e-3
"""Where a plan loses less, shares of its loss would count rounding."""

ANOTHER = 1e-9
"""What any other choice stands away at least: one of the same price is still not the one that was planned."""


@dataclass(frozen=True, slots=True)
class OfferSpans:
    """Offers some windows at every head: where heads must agree, a window planned for one of them is the nearest."""

    name: ClassVar[str] = "planned-spans"
    windows: tuple[Window, ...]

    def run(self, space: Space, ctx: PassContext) -> Space:
        return offer(space, ctx, lambda site: self.windows)


def planned_spans(chosen: Chosen) -> OfferSpans:
    """The pass that offers the windows of a plan."""
    found = {c.span for c in chosen.values() if isinstance(c, KvChoice) and not isinstance(c.span, Full)}
    return OfferSpans(tuple(sorted(span for span in found if isinstance(span, Window))))


@dataclass(frozen=True, slots=True)
class Projection:
    """A space with the nearest carried choice at every site.

    `moved` are the sites that got another choice than planned, `distance` the sum of shares by which prices differ.
    """

    space: Space
    moved: tuple[Site, ...]
    distance: float
    keeps_limits: bool


def spent(space: Space, ctx: PassContext) -> Floats:
    """Nats, bytes and seconds per token of every candidate: [candidates, 3]."""
    table = ctx.price(space)

    def total(*names: str) -> Floats:
        columns = [column for name in names for column in stages(name, table.rows)]
        summed: Floats = table.usage[:, columns].sum(axis=1)
        return summed

    return np.column_stack([total(LOSS), total("kv_bytes", "weight_bytes"), total("decode_s")])


def project(wanted: Chosen, prices: Floats, space: Space, ctx: PassContext) -> Projection:
    """The nearest choice to a plan's in a legal space; `prices` [sites, 3] are its own, as `spent` has them."""
    if is_carried(wanted, ctx):
        table = ctx.price(space.choose(wanted))
        kept = bool((table.usage.sum(axis=0) + table.constant <= table.limits).all())
        return Projection(space.choose(wanted), (), 0.0, kept)
    away = distances(wanted, prices, space, ctx)
    problem = measured_by(away, space, ctx)
    solution = solver.attempt(problem, GAP, ctx.seed, EFFORT)
    kept = not isinstance(solution, solver.NoChoice)
    if isinstance(solution, solver.NoChoice):
        solution = solver.attempt(without_limits(problem), GAP, ctx.seed, EFFORT)
    if isinstance(solution, solver.NoChoice):
        raise InputError(
            f"{ctx.capabilities.runtime} {ctx.capabilities.version} carries no plan for this model that fits"
            f" {ctx.hardware.name}; give another --backend or --target"
        )
    found = pick(space, solution)
    moved = tuple(site for site, choice in found.chosen.items() if choice != wanted[site])
    return Projection(found, moved, solution.objective, kept)


def is_carried(chosen: Chosen, ctx: PassContext) -> bool:
    """Whether a plan is one that the runtime carries as it is."""
    legal = all(legal_choices(site, (choice,), ctx) == (choice,) for site, choice in chosen.items())
    return legal and ctx.capabilities.admits(chosen)


def distances(wanted: Mapping[Site, Choice], prices: Floats, space: Space, ctx: PassContext) -> Floats:
    """How far every candidate of a space stands from what was planned for its site: [candidates]."""
    groups = [len(choices) for choices in space.candidates.values()]
    scale = np.maximum(prices.sum(axis=0), [LEAST_NATS, 1.0, 1e-12])
    away: Floats = (np.abs(spent(space, ctx) - np.repeat(prices, groups, axis=0)) / scale).sum(axis=1)
    same = [choice == wanted[site] for site, choices in space.candidates.items() for choice in choices]
    return np.where(same, 0.0, away + ANOTHER)


def measured_by(away: Floats, space: Space, ctx: PassContext) -> Problem:
    """The problem of the goal's limits, with the least distance in the place of what the goal minimises."""
    table = ctx.price(space)
    return as_problem(
        space,
        PriceTable(
            groups=table.groups,
            rows=("distance", *table.rows),
            usage=np.column_stack([away, table.usage]),
            constant=np.array([0.0, *table.constant]),
            limits=np.array([np.inf, *table.limits]),
            minimise=(0,),
            tie_break=tuple(row + 1 for row in table.tie_break),
            classes=table.classes,
            class_toll=np.array([0.0, *table.class_toll]),
        ),
    )


def without_limits(problem: Problem) -> Problem:
    """The problem with what the hardware holds as its only limits."""
    capacity = [row.startswith("bytes.") for row in problem.rows]
    return replace(problem, limits=np.where(capacity, problem.limits, np.inf))
