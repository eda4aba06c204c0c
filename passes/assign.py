"""One candidate for every site: the best of all choices that keep the limits and the relations between sites.

A multiple-choice knapsack over all decisions at once. MoA (https://arxiv.org/abs/2406.14909) solves such a programme
for windows, FlexGen (https://arxiv.org/abs/2303.06865) a linear one for placement, each by itself; here windows, bits
and tiers are columns of one table, so none spends what another could use better. Losses of sites are added: what is
wrong with that is left to the correction, which orders plans as their sums do.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from passes.shortfall import infeasible
from planner import solver
from planner.loss import Correction
from planner.pipeline import PassContext
from planner.plan import SolverReport
from planner.prices import LOSS, PriceTable
from planner.solver_problem import AtMost, Implies, Problem
from planner.space import AtMostDistinct, Attribute, Choice, KvSite, Requires, Site, Space, attribute

GAP = 1e-3
EFFORT = 4.0


@dataclass(frozen=True, slots=True)
class Assign:
    """Leaves every site the one candidate it has in the best plan within the limits."""

    name: ClassVar[str] = "assign"
    gap: float = GAP
    effort: float = EFFORT

    def run(self, space: Space, ctx: PassContext) -> Space:
        return assign(space, ctx, self.gap, self.effort)[0]


def assign(space: Space, ctx: PassContext, gap: float = GAP, effort: float = EFFORT) -> tuple[Space, SolverReport]:
    """The best plan of a space, proved to within `gap` of the best possible; Infeasible where nothing keeps the limits.

    `effort` bounds the search where a gap is left; it is counted, so that the same inputs always give the same plan.
    """
    table = ctx.price(space)
    problem = as_problem(space, table)
    solution = solver.attempt(problem, gap, ctx.seed, effort)
    if isinstance(solution, solver.NoChoice):
        raise infeasible(problem, ctx, solution.proved)
    return pick(space, solution), report(solution, problem, table, ctx)


def within_limits(space: Space, ctx: PassContext, gap: float = GAP, effort: float = EFFORT) -> Space | None:
    """The best plan of a space as `assign` finds it; None where nothing keeps the limits, without asking why."""
    solution = solver.attempt(as_problem(space, ctx.price(space)), gap, ctx.seed, effort)
    return None if isinstance(solution, solver.NoChoice) else pick(space, solution)


def pick(space: Space, solution: solver.Solution) -> Space:
    """The space with the solution's candidate at every site."""
    # After the sites of the space come those that the problem has of its own.
    picked = zip(space.candidates.items(), solution.chosen[: len(space.candidates)], strict=True)
    chosen: dict[Site, Choice] = {site: choices[index] for (site, choices), index in picked}
    return space.choose(chosen)


def as_problem(space: Space, table: PriceTable) -> Problem:
    """The space's table and relations as the solver takes them, sites and candidates by number.

    Two kinds of sites of its own come after those of the space. Where classes of heads have a price, one for each layer
    pays for them, its candidates for one, two, ... And since having no value of an attribute is a label to the solver,
    which is not to count, one that costs nothing always takes that label, and one more is allowed.
    """
    number = {site: i for i, site in enumerate(space.sites)}
    at_most = tolled(space, table, number)
    paying = [len(relation.paid) for relation in at_most]
    layers = {relation.sites for relation in at_most}
    witnesses = 0
    requires: list[Implies] = []
    for constraint in space.constraints:
        if isinstance(constraint, Requires):
            own, other = space.candidates[constraint.site], space.candidates[constraint.other]
            requires.append(
                Implies(
                    number[constraint.site],
                    tuple(i for i, choice in enumerate(own) if choice in constraint.choices),
                    number[constraint.other],
                    tuple(i for i, choice in enumerate(other) if choice in constraint.other_choices),
                )
            )
            continue
        sites, most = tuple(number[site] for site in constraint.sites), getattr(constraint, "most", 1)
        if constraint.attribute == "kernel" and most == table.classes and sites in layers:
            continue  # There already, with who pays.
        kinds, values = labels(space, constraint.sites, constraint.attribute)
        if isinstance(constraint, AtMostDistinct) and None in values:
            sites, kinds = (*sites, len(number) + len(paying) + witnesses), (*kinds, (values[None],))
            most += 1
            witnesses += 1
        at_most.append(AtMost(sites, kinds, most))
    tolls = [further * table.class_toll for count in paying for further in range(count)]
    return Problem(
        groups=(*table.groups, *paying, *(1,) * witnesses),
        rows=table.rows,
        usage=np.vstack([table.usage, *tolls, np.zeros((witnesses, len(table.rows)))]),
        constant=table.constant,
        limits=table.limits,
        minimise=table.minimise,
        at_most=tuple(at_most),
        requires=tuple(requires),
        tie_break=table.tie_break,
    )


def tolled(space: Space, table: PriceTable, number: Mapping[Site, int]) -> list[AtMost]:
    """For every layer with several heads the relation that makes it pay for its classes, where they have a price."""
    if table.classes is None or not table.class_toll.any():
        return []
    layers: dict[int, list[KvSite]] = {}
    for site in space.sites:
        if isinstance(site, KvSite):
            layers.setdefault(site.layer, []).append(site)
    found, payer = list[AtMost](), len(number)
    for sites in layers.values():
        most = min(table.classes, len(sites))
        if most > 1:
            own, _ = labels(space, sites, "kernel")
            found.append(AtMost(tuple(number[s] for s in sites), own, most, payer, tuple(range(1, most + 1))))
            payer += 1
    return found


def labels(
    space: Space, sites: Iterable[Site], name: Attribute
) -> tuple[tuple[tuple[int, ...], ...], dict[object, int]]:
    """The values that the candidates of some sites have of an attribute, by number; and the numbers."""
    values: dict[object, int] = {}
    own = tuple(
        tuple(values.setdefault(attribute(choice, name), len(values)) for choice in space.candidates[site])
        for site in sites
    )
    return own, values


def report(solution: solver.Solution, problem: Problem, table: PriceTable, ctx: PassContext) -> SolverReport:
    """What the solver says, in the units of the goal: sums of prices become expected nats per token.

    A shadow price is what the objective changes by, per unit by which a limit is loosened.
    """
    correction = Correction() if ctx.loss is None else ctx.loss.correction
    totals = problem.totals(solution.chosen)
    slope = steepness(correction, float(totals[table.rows.index(LOSS)]))
    minimises_loss = ctx.goal.minimise == LOSS
    bought: dict[str, float] = {}
    for row, price in solution.shadow_prices.items():
        name = row.removesuffix(".core").partition(".link.")[0]
        in_units = price * (slope if minimises_loss else 1.0) / (slope if row == LOSS else 1.0)
        if in_units > 0:
            bought[name] = bought.get(name, 0.0) - in_units

    def shown(value: float) -> float:
        return correction.expected(value) if minimises_loss else value

    return SolverReport(
        status=solution.status,
        gap=solution.gap,
        objective=shown(solution.objective),
        bound=shown(solution.bound),
        shadow_prices=tuple(sorted(bought.items())),
    )


def steepness(correction: Correction, total: float) -> float:
    """How much the expected loss grows with the sum of prices at a sum.

    >>> steepness(Correction(), 0.1)
    1.0
    """
    width = 1e-6 * max(total, 1e-6)
    grown = correction.expected(total + width) - correction.expected(max(total - width, 0.0))
    return round(grown / (total + width - max(total - width, 0.0)), 6)
