"""Planned GGUF files beside llama.cpp's presets, all run by llama.cpp: KL at equal bytes, bytes at equal KL, speed.

    python benchmarks/llamacpp.py examples/smollm2.yaml --between-grid --results out/llamacpp

For every preset: the types it really stores (rows that are no multiple of 256 have no K-quants), a plan of no more
bytes that loses the least, and the smallest plan that is measured to lose no more than the preset. Both are to decode
as fast, for types differ in what they take to multiply with: seconds are predicted of this machine, and where a plan is
measured to be slower it is solved again for as much less. The cache is float16 in all of them. A source that lies on a
4-bit grid keeps every number at 4 bits, which no preset can match: with --between-grid its numbers are first moved at
random by up to half a step of their block, as they may have lain before they were rounded, and the dense model is the
one moved. Every preset is kept in the results directory as it is done.
"""

import argparse
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from backends.llamacpp import codes, presets
from passes.assign import Assign
from passes.legalise import Legalise
from passes.prune_dominated import PruneDominated
from passes.weight_bits import WeightBits
from planner import cost
from planner.compile.prepare import Prepared, opened, prepare
from planner.config import load_request
from planner.errors import Infeasible, PlannerError
from planner.executor import Progress, Timing
from planner.explain import table
from planner.files import write_text
from planner.formats import weight_bytes
from planner.goal import Goal, Limits
from planner.pipeline import dense, run
from planner.plan import Plan, trial
from planner.prices import AIMED_SHARE
from planner.progress import ProgressLine
from planner.request import Request
from planner.source import Source
from planner.space import FLOAT16, FLOAT32, Choice, Full, KvChoice, KvSite, Site, WeightChoice, WeightFormat, WeightSite
from planner.verify import Examiner, Measured, quartiles, race
from profiles.weights import CheckpointWeights

PRESETS = ("Q2_K", "Q3_K_M", "Q4_0", "IQ4_NL", "Q4_1", "Q4_K_M", "Q5_K_M", "Q8_0")
HERE = (("dram", 1.0),)
TRIES, SAFETY, FASTER = 5, 0.98, 1.08
"""Plans tried, what their loss is held to beside what is wanted, by how much at once their seconds are held to less:
a measured ratio is noisy, and a limit that overshoots costs loss."""
STEPS = (WeightBits(), Legalise(), PruneDominated(), Assign())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--presets", nargs="+", choices=tuple(presets.BASES), default=PRESETS)
    parser.add_argument("--context", type=int, default=2048)
    parser.add_argument("--documents", type=int, default=4, help="documents of the verification text")
    parser.add_argument("--calibration", type=int, nargs=2, default=None, metavar=("DOCUMENTS", "DRAWS"))
    parser.add_argument("--between-grid", action="store_true", help="move the numbers off their source's grid first")
    parser.add_argument("--target", default="local", help="machine that seconds are predicted for, as for compile")
    parser.add_argument("--results", type=Path, default=Path("out/llamacpp"))
    options = parser.parse_args()
    request = load_request(options.model)
    workload = replace(request.workload, context_tokens=(options.context,), weights=(), new_tokens=32)
    verification = replace(request.verification, documents=options.documents, recall=0)
    request = replace(request, workload=workload, verification=verification)
    if options.calibration is not None:
        documents, draws = options.calibration
        request = replace(request, calibration=replace(request.calibration, documents=documents, draws=draws))
    options.results.mkdir(parents=True, exist_ok=True)
    with ProgressLine() as progress:
        if options.between_grid:
            request = replace(request, source=moved(request, options.results / "moved"))
        prepared = prepare(request, options.target, 0, progress, "llamacpp")
        lines = [["", "weights MB", "KL nats", "ms/token", "types"]]
        for preset in options.presets:
            kept = options.results / f"{preset}.json"
            if not kept.is_file():
                write_text(json.dumps(cell(prepared, preset, progress), indent=1), kept)
            lines += json.loads(kept.read_text())
    print("\n".join(table(lines)))


def moved(request: Request, out: Path) -> Source:
    """A Hugging Face directory whose matrices lie anywhere between the points of the source's grid."""
    if not (out / "config.json").is_file():
        weights, chance = CheckpointWeights(opened(request)), np.random.default_rng(0)
        for tensor in weights.checkpoint.spec.tensors:
            native = weights.native(tensor.name)
            if native is not None:
                step = np.repeat(np.abs(native.scale.astype(np.float32)), tensor.cols // native.scale.shape[1], 1)
                shift = chance.uniform(-0.5, 0.5, step.shape).astype(np.float32) * step
                weights.model.get_parameter(tensor.name).data += torch.from_numpy(shift)
        weights.model.save_pretrained(out)
        weights.tokenizer.save_pretrained(out)
    return Source(huggingface=str(out))


def cell(prepared: Prepared, preset: str, progress: ProgressLine) -> list[list[str]]:
    """The lines of one preset: itself, the plan of as many bytes, and the plan of as much loss."""
    asked, spec = prepared.exam, prepared.checkpoint.spec
    if asked is None:
        raise PlannerError(f"{prepared.request.name}: has no weights to run")
    whole = KvChoice(Full(), FLOAT16, FLOAT16, 0, HERE)
    theirs = setting(prepared, preset, whole, presets.types(preset, spec))
    size = bytes_of(prepared, theirs)
    hardware = prepared.context.hardware
    step_s = cost.total(theirs.chosen, spec, prepared.request.workload, hardware).decode_s * hardware.pessimism
    plain = replace(whole, k=FLOAT32, v=FLOAT32)
    every = {tensor.name: WeightFormat(32) for tensor in spec.tensors}
    with Examiner(asked, progress) as examiner:
        examiner.take_dense(prepared.executor.open(setting(prepared, "dense", plain, every)))
        trials = Trials(prepared, examiner, theirs, examiner.take(preset, prepared.executor.open(theirs)), progress)
        lost = trials.result.loss.value
        plans, results = {preset: theirs}, {preset: trials.result}
        for name, goal, nats in (
            ("planned, bytes", Goal("loss_nats", Limits(weight_bytes=size)), math.inf),
            ("planned, loss", Goal("weight_bytes"), lost),
        ):
            found = trials.plan(name, goal, whole, nats, step_s)
            if found is not None:
                plans[name], results[name] = found
        sessions = {name: prepared.executor.open(plan) for name, plan in plans.items()}
        timings = race(sessions, asked.documents[0], prepared.request.workload, progress)
    return [line(prepared, name, plans[name], results[name], timings[name]) for name in plans]


@dataclass(frozen=True)
class Trials:
    """Plans tried beside a preset: what is predicted of them is held to less till they are measured to be as good."""

    prepared: Prepared
    examiner: Examiner
    preset: Plan
    result: Measured
    progress: Progress

    def plan(self, name: str, goal: Goal, whole: KvChoice, nats: float, step_s: float) -> tuple[Plan, Measured] | None:
        """The first plan measured to lose no more than `nats` and to decode as fast as the preset; the fastest of those
        that lose no more where none is as fast, and None where none is found. `step_s` is the preset's, as predicted.
        """
        if nats == 0:
            return None  # a lossless preset leaves nothing to aim at
        # The solver aims at that share of a limit, and here the loss is to be the same.
        limit, kept = nats / AIMED_SHARE, list[tuple[float, Plan, Measured]]()
        for _ in range(TRIES):
            limits = replace(goal.limits, decode_s=step_s, loss_nats=None if math.isinf(nats) else limit)
            found = solved(self.prepared, replace(goal, limits=limits), whole)
            if found is None:
                break
            measured, slower = self.examiner.take(name, self.prepared.executor.open(found)), self.slower(found)
            if measured.loss.value <= nats:
                kept.append((slower, found, measured))
            else:
                limit *= SAFETY * nats / measured.loss.value
            if measured.loss.value <= nats and slower <= 1:
                break
            step_s /= min(max(slower, 1.0), FASTER)
        return min(kept, key=lambda each: each[0])[1:] if kept else None

    def slower(self, plan: Plan) -> float:
        """Time of a step over that of the preset, in turns."""
        open_, workload = self.prepared.executor.open, self.prepared.request.workload
        document = self.examiner.exam.documents[0]
        timings = race({"plan": open_(plan), "preset": open_(self.preset)}, document, workload, self.progress)
        mine, theirs = (decode_s(timings[name]) for name in ("plan", "preset"))
        return mine / theirs


def setting(prepared: Prepared, name: str, whole: KvChoice, forms: Mapping[str, WeightFormat]) -> Plan:
    """A plan of these formats, every head keeping everything."""
    chosen: dict[Site, Choice] = dict.fromkeys(prepared.checkpoint.spec.kv_sites, whole)
    for site in prepared.checkpoint.spec.weight_sites:
        chosen[site] = WeightChoice(forms[site.tensor], HERE)
    return trial(name, prepared.request.workload, chosen)


def solved(prepared: Prepared, goal: Goal, whole: KvChoice) -> Plan | None:
    """The plan of weights that the solver finds for a goal; None where none keeps its limits."""
    ctx = replace(prepared.context, goal=goal)
    start = dense(ctx)
    cached = {site: (whole,) if isinstance(site, KvSite) else own for site, own in start.candidates.items()}
    try:
        space, _ = run(STEPS, replace(start, candidates=cached), ctx)
    except Infeasible:
        return None
    forms = {s.tensor: c.format for s, c in space.chosen.items() if isinstance(s, WeightSite)}  # type: ignore[union-attr]
    return setting(prepared, "planned", whole, forms)


def bytes_of(prepared: Prepared, plan: Plan) -> int:
    """Bytes of a plan's weights, norms and biases included."""
    forms, spec = {site.tensor: choice.format for site, choice in plan.weights}, prepared.checkpoint.spec
    return sum(weight_bytes(tensor, forms[tensor.name]) for tensor in spec.tensors) + spec.other_bytes


def line(prepared: Prepared, name: str, plan: Plan, result: Measured, timings: Sequence[Timing]) -> list[str]:
    types = Counter(codes.ggml_type(choice.format).name for _, choice in plan.weights)
    size = f"{bytes_of(prepared, plan) / 1e6:.1f}"
    told = ", ".join(f"{count} {kind}" for kind, count in types.most_common())
    return [name, size, str(result.loss), f"{decode_s(timings) * 1e3:.1f}", told]


def decode_s(timings: Sequence[Timing]) -> float:
    """The median step."""
    return quartiles([s for timing in timings for s in timing.decode_s]).value


if __name__ == "__main__":
    main()
