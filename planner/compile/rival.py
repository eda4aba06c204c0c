"""llama.cpp as an artefact's rival: the same model at llama.cpp's best setting, and what both of them lose."""

from dataclasses import dataclass, replace
from pathlib import Path

from planner.compile.exam import exam
from planner.compile.prepare import opened
from planner.compile.runtimes import Runtime
from planner.config import load_request
from planner.errors import InputError
from planner.executor import Progress, Session
from planner.goal import Workload
from planner.plan import Interval, Plan, trial
from planner.space import FLOAT32, Choice, Full, KvChoice, Site, WeightChoice, WeightFormat
from planner.verify import TIMED_TOKENS, Examiner

LLAMACPP = "llama.cpp"


@dataclass(frozen=True, slots=True)
class Rival:
    """llama.cpp's session, and what it and the artefact lose to the dense model on the same positions.

    `told` says of every setting that was tried what it took.
    """

    session: Session
    losses: dict[str, Interval]
    told: tuple[str, ...]


def rival(
    plan: Plan,
    ran_by: Runtime,
    model: Path,
    names: dict[str, Session],
    workload: Workload,
    documents: int,
    progress: Progress,
) -> Rival:
    """llama.cpp with the artefact's model (its model.yaml), at its best; `names` are sessions whose loss is measured
    beside its own. InputError where the model is another one."""
    from backends.llamacpp import opponent
    from profiles.weights import CheckpointWeights

    request = load_request(model)
    checkpoint = opened(replace(request, workload=workload))
    if checkpoint.spec.weights_sha256 != plan.provenance.weights_sha256:
        raise InputError(
            f"--model {model}: names other weights than this artefact was made of; give the model.yaml that it is of"
        )
    weights = CheckpointWeights(checkpoint)
    ours = opponent.own_weights(weights, checkpoint.spec)
    # The least of a document that every vocabulary has: which tokens they are makes no difference to the time.
    prompt = tuple(5 + i % 50 for i in range(workload.longest_tokens - TIMED_TOKENS))
    found = opponent.tried(ours, checkpoint.spec.layers[0].head_dim, prompt, TIMED_TOKENS, progress)
    best = min(found, key=lambda one: one.decode_s)
    session = replace(ours, run=best.run)
    told = tuple(
        f"llama.cpp with {one}: {one.decode_s * 1e3:.1f} ms/token, first token {one.timing.ttft_s:.2f} s"
        + (", taken" if one is best else "")
        for one in found
    )
    asked = exam(weights.tokenizer, workload, replace(request.verification, documents=documents, recall=0))
    losses = {}
    with Examiner(asked, progress) as examiner:
        here = (("dram", 1.0),)
        dense: dict[Site, Choice] = dict.fromkeys(checkpoint.spec.kv_sites, KvChoice(Full(), FLOAT32, FLOAT32, 0, here))
        dense |= dict.fromkeys(checkpoint.spec.weight_sites, WeightChoice(WeightFormat(32), here))
        examiner.take_dense(ran_by.executor(weights, checkpoint.spec).open(trial("dense", workload, dense)))
        for name, each in {**names, LLAMACPP: session}.items():
            losses[name] = examiner.take(name, each).loss
    return Rival(session, losses, told)
