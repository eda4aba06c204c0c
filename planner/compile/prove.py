"""Prove a plan by running it beside dense and the best uniform settings; where it loses too much, solve once more.

The second plan is scored on other documents than the first, which told how far its loss was off.
"""

from dataclasses import dataclass

from passes.uniform_settings import uniform_settings
from planner.compile.contest import contest
from planner.compile.correct import rescaled, solved_again
from planner.compile.exam import fresh
from planner.compile.prepare import Prepared
from planner.compile.priced import baseline, priced
from planner.compile.retreat import Shipped, shipped
from planner.compile.search import Pipeline
from planner.executor import Progress
from planner.plan import Plan
from planner.report import Row
from planner.space import Space
from planner.verify import Exam

UNIFORMS_MEASURED = 3


@dataclass(frozen=True, slots=True)
class Proof:
    """The rows of the table, the one that ships, and what else there is to say."""

    rows: tuple[Row, ...]
    ships: Shipped
    notes: tuple[str, ...] = ()


def prove(prepared: Prepared, asked: Exam, widened: Space, plan: Plan, passes: Pipeline, progress: Progress) -> Proof:
    """Run everything; a plan that loses more than it may is solved again by that, if the text has other documents."""
    settings = uniform_settings(widened, prepared.context, UNIFORMS_MEASURED)
    uniform = [priced(prepared, "uniform", space) for space in settings]
    rows = contest(prepared, asked, baseline(prepared), uniform, plan, progress)
    notes: tuple[str, ...] = ()
    lost, limit = loss_nats(rows[-1]), prepared.request.goal.limits.loss_nats
    others = fresh(asked, prepared.weights.tokenizer, prepared.request) if limit is not None and lost > limit else None
    again = None if others is None else solved_again(plan, rescaled(prepared, plan, lost), passes)
    if others is not None and again is not None:
        best = [row.plan for row in rows if row.name == "uniform"]
        rows = contest(prepared, others, baseline(prepared), best, again, progress)
        notes = (
            f"a first plan lost {lost:.4g} nats when it was run, where at most {limit:g} was asked; the planned row was"
            " solved by that, and all rows are of other documents",
        )
    return Proof(rows, shipped(rows, prepared.request.goal, prepared.context.spec), notes)


def loss_nats(row: Row) -> float:
    """What a row was measured to lose, 0 where it was not."""
    found = None if row.plan.measured is None else row.plan.measured.loss_nats
    return 0.0 if found is None else found.value
