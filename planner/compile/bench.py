"""Time artefacts in turns: what one decodes and how long its first token takes, beside others on the same prompt."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from planner.compile.rival import LLAMACPP, rival
from planner.compile.verification import runnable
from planner.errors import InputError
from planner.executor import Progress, Session, Timing
from planner.explain import table
from planner.goal import Workload
from planner.plan import Interval
from planner.verify import quartiles, race

DENSE = "dense"


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Timings by name, the first one's artefact first. `process_bytes` is what this process held after all were
    loaded and timed, once for all of them. `losses` are KL to the dense model, by name, where they were measured."""

    context_tokens: int
    batch: int
    timings: Mapping[str, tuple[Timing, ...]]
    process_bytes: int
    load: float
    losses: Mapping[str, Interval] = field(default_factory=dict)
    told: tuple[str, ...] = ()

    def as_json(self) -> dict[str, object]:
        def told(value: Interval) -> dict[str, float]:
            return {"value": value.value, "low": value.low, "high": value.high}

        return {
            "context_tokens": self.context_tokens,
            "batch": self.batch,
            "process_bytes": self.process_bytes,
            "load_average": self.load,
            "told": list(self.told),
            "rows": {
                name: {
                    "decode_s": told(self._decode(found)),
                    "ttft_s": told(self._ttft(found)),
                    "kv_bytes": found[0].kv_bytes,
                    "weight_bytes": found[0].weight_bytes,
                    "loss_nats": told(self.losses[name]) if name in self.losses else None,
                }
                for name, found in self.timings.items()
            },
        }

    @staticmethod
    def _decode(found: Sequence[Timing]) -> Interval:
        return quartiles([s for timing in found for s in timing.decode_s])

    @staticmethod
    def _ttft(found: Sequence[Timing]) -> Interval:
        return quartiles([timing.ttft_s for timing in found])

    def as_text(self) -> str:
        rows = [["", "ms/token", "quartiles", "tokens/s", "first token s", "KV MB", "weights MB", "times as fast"]]
        rows[0] += ["loss nats"] if self.losses else []
        first = self._decode(next(iter(self.timings.values()))).value
        for name, found in self.timings.items():
            each, ttft = self._decode(found), self._ttft(found)
            rows.append(
                [
                    name,
                    f"{each.value * 1e3:.1f}",
                    f"{each.low * 1e3:.1f}-{each.high * 1e3:.1f}",
                    f"{self.batch / each.value:.1f}",
                    f"{ttft.value:.2f}",
                    f"{found[0].kv_bytes / 1e6:.2f}",
                    f"{found[0].weight_bytes / 1e6:.1f}",
                    f"{each.value / first:.2f}",
                    *([str(self.losses.get(name, ""))] if self.losses else []),
                ]
            )
        lines = [f"{self.context_tokens} tokens of context, batch {self.batch}, medians of turns taken one by one:"]
        lines += table(rows)
        lines += self.told
        lines.append("times as fast: how many times the row's time the first row's artefact is faster")
        lines.append(
            f"process: {self.process_bytes / 1e6:.0f} MB with all of them loaded; load average {self.load:.2f}"
        )
        return "\n".join(lines)


def names(directories: Sequence[Path]) -> dict[str, Path]:
    """What artefacts are called in a report: the directory's own name, or its whole path where two have the same.

    >>> list(names((Path("a/fast"), Path("b/small")))), list(names((Path("a/out"), Path("b/out"))))
    (['fast', 'small'], ['a/out', 'b/out'])
    """
    for i, path in enumerate(directories):
        if path.resolve() in (other.resolve() for other in directories[:i]):
            raise InputError(f"--against: {path} is there already; name each artefact once")
    short = {path.resolve().name: path for path in directories}
    plain = len(short) == len(directories) and not {DENSE, LLAMACPP} & short.keys()
    return short if plain else {str(path): path for path in directories}


def bench_artefact(
    directory: Path,
    against: Sequence[str],
    context_tokens: int | None,
    batch: int,
    rounds: int,
    progress: Progress,
    model: Path | None = None,
    documents: int = 2,
) -> BenchReport:
    """Time an artefact, and in turns with it what `against` names: `dense`, its own weights under a full float32 cache,
    `llama.cpp` with the same `model`, or directories of other artefacts, of any runtime.

    Beside llama.cpp the loss of all artefacts is measured as well, on so many documents.
    """
    plan, ran_by = runnable(directory)
    given = names((directory, *(Path(name) for name in against if name not in (DENSE, LLAMACPP))))
    sessions: dict[str, Session] = {name: runnable(path)[1].load(path) for name, path in given.items()}
    if DENSE in against:
        sessions[DENSE] = ran_by.uncompressed(directory)
    context = context_tokens or plan.workload.longest_tokens
    workload = Workload((context,), (), min(plan.workload.new_tokens, context // 2), batch)
    losses, told = dict[str, Interval](), tuple[str, ...]()
    if LLAMACPP in against:
        if model is None:
            raise InputError(f"--against {LLAMACPP}: needs --model, the model.yaml that the artefact was made of")
        found = rival(plan, ran_by, model, sessions, workload, documents, progress)
        sessions[LLAMACPP], losses, told = found.session, found.losses, found.told
    # Which tokens they are makes no difference to the time; any that every vocabulary has will do.
    document = tuple(5 + i % 50 for i in range(context))
    timings = race(sessions, document, workload, progress, rounds)
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    return BenchReport(context, batch, timings, psutil.Process().memory_info().rss, load, losses, told)
