"""Why no plan keeps the limits, and the nearest ones that some plan keeps."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import ceil, floor, isfinite, log10

import numpy as np

from planner import solver
from planner.errors import Infeasible
from planner.goal import Limits
from planner.pipeline import PassContext
from planner.prices import AIMED_SHARE, LOSS, SECONDS, dense_kv_bytes, stages
from planner.solver_problem import Problem

EFFORT = 1.0
GAP = 1e-3

UNITS: tuple[tuple[str, tuple[tuple[float, str], ...]], ...] = (
    ("_bytes", ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))),
    ("_s", ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"), (1e-9, "ns"))),
    ("_nats", ((1.0, "nats"),)),
)


@dataclass(frozen=True, slots=True)
class Limit:
    """A limit of the goal by its name there, or a tier's capacity by `tier`: its rows and its value as it was given."""

    name: str
    rows: tuple[int, ...]
    value: float
    tier: str = ""

    def __str__(self) -> str:
        return f"{self.name} ({amount(self.name, self.value)})"


@dataclass(frozen=True, slots=True)
class Shortfall:
    """A limit and what it would have to be: with all others kept, or together with the other shortfalls."""

    limit: Limit
    least: float

    def __str__(self) -> str:
        return f"{self.limit.name} to at least {amount(self.limit.name, self.least)}"


def infeasible(problem: Problem, ctx: PassContext, proved: bool) -> Infeasible:
    """The failure to raise where a problem has no solution: one line that names the limits and what would do."""
    head = "no plan keeps every limit" if proved else "found no plan that keeps every limit"
    parts = [head]
    single = enough_alone(problem, ctx)
    together = () if single else nearest(problem, ctx)
    if single:
        each = (f"{s.limit} can be no less than {amount(s.limit.name, s.least)}" for s in single)
        parts.append(f"with the others kept, {' and '.join(each)}")
        parts.append(advice(min(single, key=lambda s: s.least / s.limit.value)))
    elif together:
        parts.append(f"loosening one is not enough of {', '.join(str(s.limit) for s in together)}")
        parts.append(f"the nearest plan: {' and '.join(map(advice, together))}")
    else:
        parts = ["the relations between sites leave no choice, whatever the limits"]
    return Infeasible("; ".join(parts))


def limits_of(problem: Problem, ctx: PassContext) -> tuple[Limit, ...]:
    """The limits in force, those of the goal first."""
    found = []
    for name in Limits.__slots__:
        value = getattr(ctx.goal.limits, name)
        if value is not None:
            row = "kv_bytes" if name == "kv_share" else name
            found.append(Limit(name, stages(row, problem.rows), value))
    for tier in ctx.hardware.tiers:
        rows = stages(f"bytes.{tier.name}", problem.rows)
        found.append(Limit(f"{tier.name}_bytes", rows, tier.capacity_bytes, tier.name))
    return tuple(found)


def enough_alone(problem: Problem, ctx: PassContext) -> tuple[Shortfall, ...]:
    """The limits of which loosening one is enough, each with the least it can then be."""
    found = []
    for limit in limits_of(problem, ctx):
        totals = least(problem, (limit,), limit.rows, ctx)
        if totals is not None:
            found.append(Shortfall(limit, needed(limit, totals, ctx)))
    return tuple(found)


def nearest(problem: Problem, ctx: PassContext) -> tuple[Shortfall, ...]:
    """The limits that the plan nearest to keeping all breaks, and what it needs.

    Nearest is the plan whose worst limit is broken by the smallest factor; capacities are broken only if they must be.
    """
    every = limits_of(problem, ctx)
    for loosened in (tuple(limit for limit in every if not limit.tier), every):
        rows = [row for limit in loosened for row in limit.rows]
        scale = np.ones(len(problem.rows))
        scale[rows] = problem.limits[rows]
        scaled = replace(
            problem, usage=problem.usage / scale, constant=problem.constant / scale, limits=problem.limits / scale
        )
        totals = least(scaled, loosened, tuple(rows), ctx) if rows else None
        if totals is not None:
            needs = [(limit, needed(limit, totals * scale, ctx)) for limit in loosened]
            return tuple(Shortfall(limit, value) for limit, value in needs if value > limit.value)
    return ()


def least(
    problem: Problem, loosened: Sequence[Limit], minimise: tuple[int, ...], ctx: PassContext
) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]] | None:
    """Totals of the choice that takes least of some rows once some limits are gone; None where there is none."""
    limits = problem.limits.copy()
    for limit in loosened:
        limits[list(limit.rows)] = np.inf
    found = solver.attempt(replace(problem, minimise=minimise, limits=limits, tie_break=()), GAP, ctx.seed, EFFORT)
    return None if isinstance(found, solver.NoChoice) else problem.totals(found.chosen)


def needed(limit: Limit, totals: np.ndarray[tuple[int, ...], np.dtype[np.float64]], ctx: PassContext) -> float:
    """What a limit must be for these totals, as the goal states it, rounded up to four digits."""
    used = max(float(totals[row]) for row in limit.rows)
    if limit.name == LOSS and ctx.loss is not None:
        used = ctx.loss.correction.expected(used) / AIMED_SHARE
    if limit.name in SECONDS:
        used *= ctx.hardware.pessimism
    if limit.name == "kv_share":
        used /= dense_kv_bytes(ctx.spec, ctx.workload)
    return rounded_up(used)


def advice(shortfall: Shortfall) -> str:
    """What to change."""
    if shortfall.limit.tier:
        return f"take a target with at least {amount('_bytes', shortfall.least)} of {shortfall.limit.tier}"
    return f"raise {shortfall}"


def rounded_up(value: float) -> float:
    """Four digits, never less.

    >>> rounded_up(2_100_010.0), rounded_up(0.012341)
    (2101000.0, 0.01235)
    """
    if value <= 0 or not isfinite(value):
        return value
    unit = 10.0 ** (floor(log10(value)) - 3)
    return float(f"{ceil(value / unit - 1e-9) * unit:.12g}")


def amount(name: str, value: float) -> str:
    """A value in the unit that its name ends in.

    >>> amount("kv_bytes", 2_100_000), amount("decode_s", 0.0123), amount("loss_nats", 0.05), amount("kv_share", 0.125)
    ('2.1 MB', '12.3 ms', '0.05 nats', '0.125')
    """
    for ending, units in UNITS:
        if name.endswith(ending):
            size, unit = next(((s, u) for s, u in units if value >= s), units[-1])
            return f"{value / size:.4g} {unit}"
    return f"{value:.4g}"
