"""The planned cache beside every single method at the same bytes: KL, paired intervals, passkeys, on unseen text.

    python benchmarks/kv_budgets.py examples/smollm2.yaml --text FILE --results out/kv_budgets

Every cell is kept in the results directory as it is done, so a killed run resumes. Weights stay dense, so that only the
cache differs. All methods are scored on the same positions (the second half of each document), all caches physical.
"""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

from passes.assign import Assign
from passes.elastic_windows import ElasticWindows
from passes.kv_bits import KvBits
from passes.legalise import Legalise
from passes.prefix_kv import PrefixKv
from passes.prune_dominated import PruneDominated
from passes.pyramid_kv import PyramidKv
from passes.single_methods import METHODS, single_method
from passes.streaming_heads import StreamingHeads
from passes.uniform_kv import UniformKv
from planner.compile.exam import exam
from planner.compile.prepare import Prepared, prepare
from planner.config import load_request
from planner.cost import total
from planner.explain import table
from planner.files import write_text
from planner.goal import Goal, Limits
from planner.pipeline import PassContext, dense, run
from planner.plan import trial
from planner.prices import dense_kv_bytes
from planner.progress import ProgressLine
from planner.quality import mean_interval, paired_interval
from planner.space import Space
from planner.verify import Examiner, Measured

CHUNK_TOKENS = 512

WIDEN = (UniformKv(), PyramidKv(), PrefixKv(), StreamingHeads(), ElasticWindows(), KvBits(), Legalise())


def plans(ctx: PassContext) -> dict[str, Space | None]:
    """The joint plan and what each method reaches alone; None where it cannot meet the limit."""
    widened, _ = run(WIDEN, dense(ctx), ctx)
    pruned, _ = run((PruneDominated(),), widened, ctx)
    found: dict[str, Space | None] = {"planned": Assign().run(pruned, ctx)}
    for method in METHODS:
        found[method] = single_method(method, widened, dense(ctx), ctx)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--text", type=Path, help="UTF-8 text no calibration saw; the shipped one if left out")
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.125, 0.0625])
    parser.add_argument("--results", type=Path, default=Path("out/kv_budgets"))
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    with ProgressLine() as progress:
        prepared = prepare(load_request(options.model), "server-cpu", 0, progress, "transformers")
        if prepared.profile is None:
            raise SystemExit("this benchmark needs a model with weights")
        tokenizer, ctx = prepared.weights.tokenizer, prepared.context
        asked = exam(tokenizer, ctx.workload, options.text, options.documents, prepared.profile.documents)
        with Examiner(replace(asked, chunk_tokens=CHUNK_TOKENS), progress) as examiner:
            measure(prepared, examiner, options.shares, options.results)
    print(report(options.results, options.shares, dense_kv_bytes(ctx.spec, ctx.workload)))
    text, tokens = options.text or "the shipped text", ctx.workload.longest_tokens
    print(f"{time.strftime('%Y-%m-%d')}, {options.documents} documents of {tokens} tokens of {text}")


def measure(prepared: Prepared, examiner: Examiner, shares: Sequence[float], results: Path) -> None:
    """Run every cell that is not kept yet."""
    ctx, taken = prepared.context, False
    for share in shares:
        for method, space in plans(replace(ctx, goal=Goal("loss_nats", Limits(kv_share=share)))).items():
            path = results / f"{share:g}-{method}.json"
            if path.is_file():
                continue
            if space is None:
                write_text(json.dumps({"reached": False}), path)
                continue
            if not taken:
                plain = prepared.executor.open(trial("dense", ctx.workload, dense(ctx).chosen))
                write_text(json.dumps(cell(examiner.take_dense(plain))), results / "dense.json")
                taken = True
            session = prepared.executor.open(trial(method, ctx.workload, space.chosen))
            measured = examiner.take(f"{method} at {share:.4g}", session)
            document = examiner.exam.documents[0]
            counted = session.time(document[: len(document) - 8], 8, CHUNK_TOKENS)
            expected = total(space.chosen, ctx.spec, ctx.workload, ctx.hardware).kv_bytes
            told: dict[str, object] = {"kv_bytes": counted.kv_bytes, "predicted_kv_bytes": expected}
            if ctx.loss is not None:
                told["predicted_nats"] = asdict(ctx.loss.predicted(space.chosen, method == "planned"))
            write_text(json.dumps({**cell(measured), **told}), path)


def cell(measured: Measured) -> dict[str, object]:
    """One measurement as it is kept."""
    return {"reached": True, "scores": [asdict(s) for s in measured.scores], "passkeys": list(measured.passkeys)}


def report(results: Path, shares: Sequence[float], dense_bytes: int) -> str:
    """The table, and for each method the paired interval of its loss above the planned one's."""
    head = ["share", "method", "bytes", "counted/predicted", "KL nats", "predicted", "above planned", "passkey"]
    rows = [head]
    for share in shares:
        ours: list[float] = []
        for method in ("planned", *METHODS):
            data = json.loads((results / f"{share:g}-{method}.json").read_text())
            if not data["reached"]:
                rows.append([f"{share:.2%}", method, "cannot reach", *[""] * 5])
                continue
            losses = [s["loss_nats"] for s in data["scores"]]
            ours = losses if method == "planned" else ours
            interval, above = mean_interval(losses), paired_interval(ours, losses)
            rows.append(
                [
                    f"{share:.2%}",
                    method,
                    f"{data['kv_bytes'] / dense_bytes:.2%}",
                    f"{data['kv_bytes'] / data['predicted_kv_bytes']:.4f}",
                    f"{interval.value:.4f} [{interval.low:.4f}, {interval.high:.4f}]",
                    f"{data['predicted_nats']['value']:.4f}",
                    "" if method == "planned" else f"{above.value:.4f} [{above.low:.4f}, {above.high:.4f}]",
                    f"{sum(data['passkeys'])}/{len(data['passkeys'])}",
                ]
            )
    return "\n".join(table(rows))


if __name__ == "__main__":
    main()
