"""What stands beside a front: the uniform settings that no other uniform setting matches or beats."""

import numpy as np

from passes.uniform_settings import kv_settings, row_numbers, weight_settings
from planner.frontier import evenly, front
from planner.goal import Goal, Limits, Objective
from planner.pipeline import PassContext
from planner.prices import limit, stages
from planner.space import Space, violated


def uniform_front(
    space: Space, ctx: PassContext, over: tuple[Objective, ...], within: Limits, most: int
) -> tuple[Space, ...]:
    """At most so many of the uniform settings of a widened space that keep what is limited and are their own front over
    some currencies, spread evenly, each as a space with one candidate per site."""
    table, rows = ctx.price(space), row_numbers(space)
    kv = list(kv_settings(space, table, rows, ctx))
    weights = list(weight_settings(space, table, rows))
    totals = table.constant + np.array([[a.used + b.used for b in weights] for a in kv]).reshape(-1, len(table.rows))
    goal = Goal(over[0], within)
    limits = [limit(row, ctx.spec, ctx.workload, goal, ctx.hardware, ctx.loss) for row in table.rows]
    kept = np.flatnonzero((totals <= np.array(limits)).all(axis=1))
    if not len(kept):
        return ()
    taken = np.column_stack([totals[kept][:, list(stages(name, table.rows))].max(axis=1) for name in over])
    found: list[Space] = []
    for number in kept[front(taken)].tolist():
        first, second = divmod(number, len(weights))
        chosen = {**kv[first].chosen, **weights[second].chosen}
        if violated(chosen, space.constraints) is None:
            found.append(space.choose(chosen))
    return tuple(found[i] for i in evenly(most, len(found)))
