"""Mixed weight bits beside every uniform setting of a runtime's weight formats, at the same bytes, on unseen texts.

    python -m benchmarks.weight_bits examples/smollm2.yaml --texts FILE ... --results out/weight_bits

A uniform setting has one format in every matrix. At the bytes of each, a plan is solved that loses the least, and both
are run on the same documents, the cache whole and in floats, so that only the weights differ. Whether rounding loses
anything hangs on the source: one that already lies on a grid of 4 bits keeps every number there, and is to be moved off
it first (--between-grid, as in `benchmarks.llamacpp`). Every setting is kept in the results directory as it is done,
under a name that tells what was run on what.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.llamacpp import HERE, bytes_of, moved, setting, solved
from benchmarks.unseen import exams
from planner.compile.prepare import Prepared, prepare
from planner.config import load_request
from planner.executor import Progress
from planner.explain import format_name, table
from planner.files import write_text
from planner.goal import Goal, Limits
from planner.plan import Plan, sha256
from planner.progress import ProgressLine
from planner.quality import mean_interval, paired_interval
from planner.space import FLOAT16, FLOAT32, Full, KvChoice, WeightFormat
from planner.verify import Exam, Examiner

WHOLE = KvChoice(Full(), FLOAT16, FLOAT16, 0, HERE)
FLOATS = 16
"""Bits from which on a format is no candidate: nothing is rounded to speak of."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--backend", default="transformers")
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="UTF-8 texts; the shipped one if left out")
    parser.add_argument("--documents", type=int, default=8, help="of each text")
    parser.add_argument("--tokens", type=int, default=512, help="of each document")
    parser.add_argument("--between-grid", action="store_true", help="move the numbers off their source's grid first")
    parser.add_argument("--results", type=Path, default=Path("out/weight_bits"))
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    request = load_request(options.model)
    if options.between_grid:
        request = replace(request, source=moved(request, options.results / "moved"))
    with ProgressLine() as progress:
        prepared = prepare(request, "server-cpu", 0, progress, options.backend)
        workload = replace(request.workload, context_tokens=(options.tokens,), weights=())
        texts = exams(prepared, options.texts, options.documents, workload)
        found = [document for each in texts.values() for document in each.documents]
        plans, asked = dict(settings(prepared)), replace(next(iter(texts.values())), documents=tuple(found))
        losses = measure(prepared, plans, asked, options.results, progress)
    print(report(prepared, plans, losses))


def settings(prepared: Prepared) -> Iterator[tuple[str, Plan]]:
    """Every uniform setting, and the plan of as many bytes."""
    spec = prepared.checkpoint.spec
    for form in prepared.executor.capabilities.weight_formats:
        if form.bits >= FLOATS or any(tensor.cols % max(form.group, 1) for tensor in spec.tensors):
            continue
        name = format_name(form)
        uniform = setting(prepared, name, WHOLE, dict.fromkeys((tensor.name for tensor in spec.tensors), form))
        yield name, uniform
        plan = solved(prepared, Goal("loss_nats", Limits(weight_bytes=bytes_of(prepared, uniform))), WHOLE)
        if plan is not None:
            yield f"planned for {name}", plan


def measure(
    prepared: Prepared, plans: Mapping[str, Plan], asked: Exam, results: Path, progress: Progress
) -> dict[str, list[float]]:
    """The losses of every setting on each document; those that are kept are read back."""
    losses = dict[str, list[float]]()
    floats = {tensor.name: WeightFormat(32) for tensor in prepared.context.spec.tensors}
    plain = setting(prepared, "dense", replace(WHOLE, k=FLOAT32, v=FLOAT32), floats)
    with Examiner(asked, progress) as examiner:
        taken = False
        for name, plan in plans.items():
            run = sha256(repr((prepared.context.spec.weights_sha256, asked.documents, asked.first, plan.chosen)))
            path = results / f"{name.replace(' ', '-')}-{run[:12]}.json"
            if not path.is_file():
                if not taken:
                    examiner.take_dense(prepared.executor.open(plain))
                    taken = True
                scores = examiner.take(name, prepared.executor.open(plan)).scores
                write_text(json.dumps([score.loss_nats for score in scores]), path)
            losses[name] = json.loads(path.read_text())
    return losses


def report(prepared: Prepared, plans: Mapping[str, Plan], losses: Mapping[str, Sequence[float]]) -> str:
    """Bytes, losses over all documents, and how much more a uniform setting loses than its plan."""
    rows = [["setting", "weights MB", "nats per token", "uniform - planned", "formats"]]
    for name, plan in plans.items():
        rival = name.removeprefix("planned for ")
        more = "" if rival == name else str(paired_interval(losses[name], losses[rival]))
        forms = Counter(format_name(choice.format) for _, choice in plan.weights).most_common()
        told = ", ".join(f"{count} {form}" for form, count in forms)
        rows.append([name, f"{bytes_of(prepared, plan) / 1e6:.1f}", str(mean_interval(losses[name])), more, told])
    return "\n".join(table(rows))


if __name__ == "__main__":
    main()
