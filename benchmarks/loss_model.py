"""How well the loss of a plan is predicted: random mixtures and plans that the solver chose, none of them an anchor.

    python -m benchmarks.loss_model examples/smollm2.yaml --backend transformers --texts FILE ... --results out/loss

Random mixtures take at every site any choice that costs no more than some nats, another cap for each mixture; solved
plans minimise the loss at ten shares of the 16-bit cache, or for a runtime of few KV formats the seconds of a step at
ten losses. Each is scored through its physical cache on documents that nothing was calibrated on, and kept in the
results directory as it is done. `--texts` may name several domains: predicted is compared with each, with all, and with
what each plan loses in the mean over them.
"""

import argparse
import json
import math
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.unseen import exams
from planner.compile.prepare import Prepared, prepare
from planner.compile.priced import baseline
from planner.compile.search import pipeline, search
from planner.config import load_request
from planner.errors import Infeasible, PlannerError
from planner.explain import table
from planner.files import write_text
from planner.goal import Goal, Limits
from planner.plan import trial
from planner.progress import ProgressLine
from planner.space import Choice, Site, Space, violated
from planner.verify import Examiner

SHARES = (0.5, 0.4, 0.3, 0.25, 0.2, 0.15, 0.125, 0.1, 0.08, 0.0625)
LOSSES_NATS = (0.01, 0.015, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.2, 0.3)
LEAST_CAP_NATS, MOST_CAP_NATS = 2e-4, 1e-2
SHORT = (0.7, 1.4)
"""Measured over predicted of solved plans that will do."""


@dataclass(frozen=True)
class Trial:
    """A plan to run, and what it is expected to lose."""

    name: str
    chosen: dict[Site, Choice]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--backend", default="transformers")
    parser.add_argument("--texts", type=Path, nargs="*", default=[], help="UTF-8 texts; the shipped one if left out")
    parser.add_argument("--documents", type=int, default=8, help="of each text")
    parser.add_argument("--random", type=int, default=30)
    parser.add_argument("--context", type=int, help="tokens; the model file's if left out")
    parser.add_argument("--calibration", type=int, nargs=2, metavar=("DOCUMENTS", "DRAWS"))
    parser.add_argument("--results", type=Path, default=Path("out/loss_model"))
    options = parser.parse_args()
    options.results.mkdir(parents=True, exist_ok=True)
    request = load_request(options.model)
    if options.context is not None:
        request = replace(request, workload=replace(request.workload, context_tokens=(options.context,)))
    if options.calibration is not None:
        documents, draws = options.calibration
        request = replace(request, calibration=replace(request.calibration, documents=documents, draws=draws))
    with ProgressLine() as progress:
        prepared = prepare(request, "server-cpu", 0, progress, options.backend)
        texts = exams(prepared, options.texts, options.documents, prepared.context.workload)
        trials = [*mixtures(prepared, options.random), *solved(prepared)]
        for name, asked in texts.items():
            with Examiner(asked, progress) as examiner:
                measure(prepared, examiner, trials, name, options.results)
    report(options.results)


def mixtures(prepared: Prepared, count: int) -> Iterator[Trial]:
    """Random whole settings that keep the runtime's relations between sites."""
    ctx = prepared.context
    if ctx.loss is None:
        raise PlannerError("nothing is priced")
    space = search(pipeline(None), replace(ctx, goal=Goal("loss_nats"))).widened
    chance = random.Random(0)
    prices = {site: ctx.loss.prices(site, choices) for site, choices in space.candidates.items()}
    for number in range(count):
        cap = math.exp(chance.uniform(math.log(LEAST_CAP_NATS), math.log(MOST_CAP_NATS)))
        chosen: dict[Site, Choice] = {}
        for site, choices in space.candidates.items():
            cheap = [c for c, price in zip(choices, prices[site], strict=True) if price <= cap]
            chosen[site] = chance.choice(cheap or [choices[int(np.argmin(prices[site]))]])
        yield Trial(f"random {number}", mended(chosen, space, chance))


def mended(chosen: dict[Site, Choice], space: Space, chance: random.Random) -> dict[Site, Choice]:
    """The choice with relations kept: sites that are too different take what one of them has."""
    for constraint in space.constraints:
        if violated(chosen, (constraint,)) is None:
            continue
        sites = getattr(constraint, "sites", ())
        shared = [c for c in {chosen[site]: None for site in sites} if all(c in space.candidates[s] for s in sites)]
        if not shared:
            raise PlannerError(f"{constraint}: no choice is offered at all of its sites")
        chosen |= dict.fromkeys(sites, chance.choice(shared))
    return chosen


def solved(prepared: Prepared) -> Iterator[Trial]:
    """What the solver chooses at ten budgets."""
    ctx = prepared.context
    by_bytes = ctx.capabilities.classes_per_layer is None
    for value in SHARES if by_bytes else LOSSES_NATS:
        goal = Goal("loss_nats", Limits(kv_share=value)) if by_bytes else Goal("decode_s", Limits(loss_nats=value))
        try:
            yield Trial(f"solved {value:g}", dict(search(pipeline(None), replace(ctx, goal=goal)).chosen.chosen))
        except Infeasible as error:
            print(f"solved {value:g}: {error}")


def measure(prepared: Prepared, examiner: Examiner, trials: Sequence[Trial], text: str, results: Path) -> None:
    """Run every trial that is not kept yet."""
    ctx, taken = prepared.context, False
    if ctx.loss is None:
        raise PlannerError("nothing is priced")
    for each in trials:
        path = results / f"{text}-{each.name.replace(' ', '-')}.json"
        if path.is_file():
            continue
        if not taken:
            examiner.take_dense(prepared.executor.open(baseline(prepared)))
            taken = True
        measured = examiner.take(each.name, prepared.executor.open(trial(each.name, ctx.workload, each.chosen)))
        told = {
            "name": each.name,
            "text": text,
            "sum": ctx.loss.total(each.chosen),
            "predicted": asdict(ctx.loss.predicted(each.chosen, each.name.startswith("solved"))),
            "measured": measured.loss.value,
            "documents": [score.loss_nats for score in measured.scores],
        }
        write_text(json.dumps(told), path)


def report(results: Path) -> None:
    """Every plan, then how well they were ranked, hit and covered, text by text and together."""
    found = [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]
    rows = [["text", "plan", "sum of prices", "predicted", "measured", "measured / predicted"]]
    for each in sorted(found, key=lambda f: (f["text"], f["predicted"]["value"])):
        value, measured = each["predicted"]["value"], each["measured"]
        rows.append(
            [
                each["text"],
                each["name"],
                f"{each['sum']:.4f}",
                f"{value:.4f}",
                f"{measured:.4f}",
                f"{measured / value:.2f}",
            ]
        )
    print("\n".join(table(rows)))
    names = list(dict.fromkeys(each["text"] for each in found))
    groups = {name: [each for each in found if each["text"] == name] for name in names}
    if len(names) > 1:
        groups |= {"all": found, "mean over texts": over_texts(found)}
    for text, own in groups.items():
        for kind in ("random", "solved", ""):
            print(f"{text}, {kind or 'all plans'}: {told([each for each in own if each['name'].startswith(kind)])}")


def over_texts(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every plan once, with what it loses in the mean over the texts that it ran on."""
    by_plan: dict[str, list[dict[str, Any]]] = {}
    for each in found:
        by_plan.setdefault(each["name"], []).append(each)
    return [{**own[0], "measured": statistics.fmean(each["measured"] for each in own)} for own in by_plan.values()]


def told(found: Sequence[dict[str, object]]) -> str:
    """The figures of some plans in one line."""
    if len(found) < 3:
        return f"{len(found)} plans are too few"
    told = [numbers(each["predicted"]) for each in found]
    predicted = np.array([each["value"] for each in told])
    measured = np.array([float(str(each["measured"])) for each in found])
    ratio = measured / predicted
    inside = [one["low"] <= m <= one["high"] for one, m in zip(told, measured, strict=True)]
    width = statistics.median(one["high"] / one["low"] for one in told)
    return (
        f"{len(found)} plans, Spearman {spearman(predicted, measured):.3f}, median error"
        f" {statistics.median(np.abs(predicted / measured - 1)):.1%}, measured / predicted {ratio.min():.2f} to"
        f" {ratio.max():.2f} (median {statistics.median(ratio):.2f},"
        f" {np.mean((ratio >= SHORT[0]) & (ratio <= SHORT[1])):.0%} within {SHORT[0]} to {SHORT[1]}),"
        f" interval covers {np.mean(inside):.0%}, high / low {width:.2f}"
    )


def numbers(value: object) -> dict[str, float]:
    """A JSON object of numbers."""
    if not isinstance(value, dict):
        raise PlannerError(f"{value!r}: is no interval; remove the results that hold it")
    return {str(key): float(number) for key, number in value.items()}


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation."""
    ranks = [np.argsort(np.argsort(x)).astype(float) for x in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


if __name__ == "__main__":
    main()
