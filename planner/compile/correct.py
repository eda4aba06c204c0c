"""Learn from running a plan that misses its loss limit, or takes far less of it than was expected, and solve again."""

from dataclasses import replace

from planner.compile.prepare import Prepared
from planner.compile.priced import baseline, planned
from planner.compile.retreat import objective
from planner.compile.search import Pipeline, search
from planner.errors import Infeasible
from planner.executor import Progress
from planner.plan import Plan
from planner.prices import LOSS
from planner.verify import Exam, Examiner

ROUNDS = 3
"""How often a plan is corrected and solved again."""

LEAST_TAKEN = 0.6
"""Share of the limit on the loss under which a plan was priced too dear. Three quarters of what is aimed at
(`planner.prices.AIMED_SHARE`), for a few documents tell no smaller difference."""


def correct(plan: Plan, prepared: Prepared, passes: Pipeline, progress: Progress) -> tuple[Plan, Prepared]:
    """The best plan that keeps its loss limit on the documents of the anchors, as far as a few rounds get there.

    Each round scales what sums of prices are expected to lose to what the last plan was measured to, so that the next
    is solved by what is true where it will be. Where none kept the limit the last one stays, and verification has the
    last word.
    """
    goal = prepared.request.goal
    limit = goal.limits.loss_nats
    if limit is None or prepared.context.loss is None or prepared.read_from is None:
        return plan, prepared
    least = 0.0 if goal.minimise == LOSS else LEAST_TAKEN * limit  # little is what such a goal is after
    documents, chunk = prepared.read_from.held_out, prepared.request.workload.prefill_chunk_tokens
    kept: tuple[Plan, Prepared] | None = None
    with Examiner(Exam(documents, len(documents[0]) // 2, (), chunk), progress) as examiner:
        examiner.take_dense(prepared.executor.open(baseline(prepared)))
        for number in range(ROUNDS + 1):
            progress("correcting", number, ROUNDS + 1)
            name = f"plan {number + 1} of at most {ROUNDS + 1}"
            loss_nats = examiner.take(name, prepared.executor.open(plan)).loss.value
            if loss_nats <= limit and (kept is None or objective(plan) <= objective(kept[0])):
                kept = plan, prepared
            if least <= loss_nats <= limit or number == ROUNDS:
                break
            prepared = rescaled(prepared, plan, loss_nats)
            again = solved_again(plan, prepared, passes)
            if again is None:
                break
            plan = again
    progress("correcting", ROUNDS + 1, ROUNDS + 1)
    return kept or (plan, prepared)


def rescaled(prepared: Prepared, plan: Plan, loss_nats: float) -> Prepared:
    """Prepared with the losses of solved plans scaled to what running one of them showed."""
    loss = prepared.context.loss
    total = 0.0 if loss is None else loss.total(plan.chosen)
    if loss is None or total <= 0:
        return prepared
    scaled = replace(loss, correction=loss.correction.through(total, loss_nats))
    return replace(prepared, context=replace(prepared.context, loss=scaled))


def solved_again(plan: Plan, prepared: Prepared, passes: Pipeline) -> Plan | None:
    """The plan by new prices; None where it is the same again, or nothing keeps the limits any more."""
    try:
        again = planned(prepared, passes, search(passes, prepared.context))
    except Infeasible:
        return None
    return None if again.chosen == plan.chosen else again
