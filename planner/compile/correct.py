"""Learn from running a plan that misses its loss limit, and solve again."""

from dataclasses import replace

from planner.compile.prepare import Prepared, calibration_documents, corrected
from planner.compile.priced import baseline, planned
from planner.compile.search import Pipeline, search
from planner.errors import Infeasible
from planner.executor import Progress
from planner.plan import Plan
from planner.profile import Anchor
from planner.quality import compare

ROUNDS = 3
"""How often a plan that missed its loss limit is corrected and solved again."""


def correct(plan: Plan, prepared: Prepared, passes: Pipeline, progress: Progress) -> tuple[Plan, Prepared]:
    """The plan that keeps its loss limit on the document of the anchors, as far as a few rounds get there.

    What a round measured weighs as much as all anchors before it: it was measured where the plan is. Where nothing
    keeps the limits any more by the corrected prices, the last plan stays and verification has the last word.
    """
    limit, profile = prepared.request.goal.limits.loss_nats, prepared.profile
    if limit is None or profile is None:
        return plan, prepared
    _, document = calibration_documents(prepared.request, prepared.weights, prepared.context.seed)
    first, chunk = len(document) // 2, prepared.request.workload.prefill_chunk_tokens
    answers = prepared.executor.open(baseline(prepared)).score(document, first, chunk)
    for number in range(ROUNDS):
        progress("correcting", number, ROUNDS)
        score = compare(answers, prepared.executor.open(plan).score(document, first, chunk), document[first + 1 :])
        if score.loss_nats <= limit or prepared.context.loss is None:
            break
        total = prepared.context.loss.total(plan.chosen)
        anchor = Anchor(f"round {number + 1}", len(document), total, score.loss_nats, chosen=True)
        profile = replace(profile, anchors=(*profile.anchors, *(anchor,) * len(profile.anchors)))
        prepared = replace(prepared, profile=profile, context=corrected(prepared, profile))
        try:
            plan = planned(prepared, passes, search(passes, prepared.context))
        except Infeasible:
            break
    progress("correcting", ROUNDS, ROUNDS)
    return plan, prepared
