"""The planned cache beside single methods, passes one after the other and kvpress, at the same bytes, on unseen texts.

    python -m benchmarks.kv_budgets examples/smollm2.yaml --texts FILE ... --kvpress PYTHON --results out/kv_budgets

Every cell, one method on one document, is kept in the results directory as it is done, so a killed run resumes. Weights
stay dense, so that only the cache differs. All are scored on the last tokens of each document, ours also on its second
half; a hidden number is asked for after the context, which no press sees the question of. `--kvpress` names the Python
of an environment that has kvpress; without it the presses have no cells. `benchmarks.presses` says what differs there.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.kv_report import OURS, report
from benchmarks.presses import Asked, work
from benchmarks.unseen import exams
from passes.assign import within_limits
from passes.elastic_windows import ElasticWindows
from passes.kv_bits import KvBits
from passes.legalise import Legalise
from passes.prefix_kv import PrefixKv
from passes.prune_dominated import PruneDominated
from passes.pyramid_kv import PyramidKv
from passes.sequential import sequential
from passes.single_methods import METHODS, single_method
from passes.streaming_heads import StreamingHeads
from passes.uniform_kv import UniformKv
from planner.compile.prepare import Prepared, prepare
from planner.config import load_request
from planner.cost import total
from planner.files import write_text
from planner.goal import Goal, Limits
from planner.pipeline import PassContext, dense, run
from planner.plan import trial
from planner.progress import ProgressLine
from planner.quality import compare
from planner.space import Space
from planner.verify import ANSWER_TOKENS, Exam, Tokens, recalled
from profiles.documents import CALIBRATION_TEXT, shipped

CHUNK_TOKENS = 512
RECALL = 5
"""Hidden numbers of each kind, all in the first text's exam."""

PIECES, PIECE_CHARACTERS = 16, 1700
"""Of the calibration text, on which DuoAttention's heads are scored."""

WIDEN = (UniformKv(), PyramidKv(), PrefixKv(), StreamingHeads(), ElasticWindows(), KvBits(), Legalise())


def solved(method: str, ctx: PassContext) -> Space | None:
    """What a method reaches within the goal; None where it cannot."""
    widened, _ = run(WIDEN, dense(ctx), ctx)
    if method == "planned":
        return within_limits(run((PruneDominated(),), widened, ctx)[0], ctx)
    if method == "one after the other":
        found = sequential(widened, ctx)
        return None if found is None else found.plan
    return next(single_method(single, widened, dense(ctx), ctx) for single in METHODS if single == method)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument(
        "--texts", type=Path, nargs="*", default=[], help="UTF-8, one a domain; the shipped one if none"
    )
    parser.add_argument("--documents", type=int, default=8, help="of each text")
    parser.add_argument("--tail", type=int, default=32, help="tokens after the prompt, on which all are compared")
    parser.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.125, 0.0625])
    parser.add_argument("--methods", nargs="+", choices=OURS, default=OURS)
    parser.add_argument("--kvpress", type=Path, help="the Python of an environment with kvpress")
    parser.add_argument("--results", type=Path, default=Path("out/kv_budgets"))
    options = parser.parse_args()
    with ProgressLine() as progress:
        prepared = prepare(load_request(options.model), "server-cpu", 0, progress, "transformers")
        ctx = prepared.context
        texts = exams(prepared, options.texts, options.documents, ctx.workload, RECALL)
        bench = Bench(prepared, texts, options.tail, options.results)
        bench.measure(options.shares, options.methods)
        if options.kvpress is not None:
            bench.press(options.kvpress, options.shares)
        bench.recall(options.shares, options.methods)
    print(report(options.results, list(texts), options.documents, options.shares, ctx.spec, ctx.workload))
    tokens = ctx.workload.longest_tokens
    print(f"{time.strftime('%Y-%m-%d')}, {options.documents} documents of {tokens} tokens of {', '.join(texts)}")


@dataclass
class Bench:
    """A model, what it is asked about each domain, and where the cells are kept."""

    prepared: Prepared
    exams: dict[str, Exam]
    tail: int
    results: Path

    def plan(self, share: float, method: str) -> Space | None:
        """A method's plan at a share, and what is expected of it told in a file of its own."""
        ctx = replace(self.prepared.context, goal=Goal("loss_nats", Limits(kv_share=share)))
        space = solved(method, ctx)
        told: dict[str, object] = {"reached": space is not None}
        if space is not None and ctx.loss is not None:
            told["kv_bytes"] = total(space.chosen, ctx.spec, ctx.workload, ctx.hardware).kv_bytes
            told["predicted_nats"] = asdict(ctx.loss.predicted(space.chosen, method == "planned"))
            told["sum_of_prices"] = ctx.loss.total(space.chosen)
        self.keep(told, "plans", f"{share:g}-{method}")
        return space

    def unfinished(self, folder: str, shares: Sequence[float], methods: Sequence[str]) -> Iterator[tuple[str, Space]]:
        """The cells of a folder that are not there yet, each plan solved once."""
        for share in shares:
            for method in methods:
                name = f"{share:g}-{method}"
                if (self.results / folder / f"{name}.json").is_file():
                    continue
                if name not in self._plans:
                    self._plans[name] = self.plan(share, method)
                space = self._plans[name]
                if space is not None:
                    yield name, space

    def __post_init__(self) -> None:
        self._plans: dict[str, Space | None] = {}

    def keep(self, told: dict[str, object], folder: str, name: str) -> None:
        """Write a cell, or what is known of a plan."""
        (self.results / folder).mkdir(parents=True, exist_ok=True)
        write_text(json.dumps(told), self.results / folder / f"{name}.json")

    def measure(self, shares: Sequence[float], methods: Sequence[str]) -> None:
        """Score plans on documents that are not done: all plans on one before the next, so that they can be paired."""
        executor, ctx = self.prepared.executor, self.prepared.context
        for domain, asked in self.exams.items():
            for index, document in enumerate(asked.documents):
                folder = f"{domain}-{index}"
                cells = list(self.unfinished(folder, shares, methods))
                if not cells:
                    continue
                plain = executor.open(trial("dense", ctx.workload, dense(ctx).chosen))
                whole = plain.score(document, asked.first, CHUNK_TOKENS)
                for name, space in cells:
                    session = executor.open(trial(name, ctx.workload, space.chosen))
                    told = session.score(document, asked.first, CHUNK_TOKENS)
                    half = compare(whole, told, document[asked.first + 1 :])
                    end = compare(whole[-self.tail :], told[-self.tail :], document[len(document) - self.tail + 1 :])
                    self.keep({"half": asdict(half), "end": asdict(end)}, folder, name)

    def recall(self, shares: Sequence[float], methods: Sequence[str]) -> None:
        """Ask every plan for the hidden numbers, and count its bytes."""
        executor, ctx = self.prepared.executor, self.prepared.context
        asked = next(iter(self.exams.values()))
        for name, space in self.unfinished("recall", shares, methods):
            session = executor.open(trial(name, ctx.workload, space.chosen))
            document = asked.documents[0]
            counted = session.time(document[: len(document) - 8], 8, CHUNK_TOKENS)
            passkeys, pairs = recalled(session, asked.passkeys), recalled(session, asked.pairs)
            self.keep({"kv_bytes": counted.kv_bytes, "passkeys": passkeys, "pairs": pairs}, "recall", name)

    def press(self, python: Path, shares: Sequence[float]) -> None:
        """Run kvpress's presses on the same documents and prompts, and read their answers."""
        asked = next(iter(self.exams.values()))
        kinds = {"passkey": asked.passkeys, "pair": asked.pairs}
        found: dict[str, Callable[[Sequence[int]], bool]] = {}
        prompts: dict[str, tuple[Tokens, int]] = {}
        for kind, keys in kinds.items():
            for index, key in enumerate(keys):
                prompts[f"{kind}-{index}"] = (key.prompt, key.question_tokens)
                found[f"{kind}-{index}"] = key.found
        text = shipped(CALIBRATION_TEXT)
        order = Asked(
            {f"{d}-{i}": (ids, self.tail) for d, each in self.exams.items() for i, ids in enumerate(each.documents)},
            prompts,
            shares,
            len(self.prepared.context.spec.kv_sites),
            ANSWER_TOKENS,
            [text[i * PIECE_CHARACTERS : (i + 1) * PIECE_CHARACTERS] for i in range(PIECES)],
        )
        cells = self.results / "kvpress"
        with TemporaryDirectory() as scratch:
            self.prepared.weights.model.save_pretrained(scratch)
            self.prepared.weights.tokenizer.save_pretrained(scratch)
            work(python, order, Path(scratch), cells)
        for name, tells in found.items():
            told = json.loads((cells / f"{name}.json").read_text())
            self.keep({press: tells(each["answer"]) for press, each in told.items()}, cells.name, f"{name}-found")


if __name__ == "__main__":
    main()
