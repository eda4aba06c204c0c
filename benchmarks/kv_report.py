"""The table of cells that `kv_budgets.py` kept: bytes, KL with its interval, the paired interval, and recall.

A cell that is not there reads "not measured".
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.presses import PRESSES, counted, named
from passes.single_methods import METHODS
from planner.explain import table
from planner.goal import Workload
from planner.prices import dense_kv_bytes
from planner.quality import mean_interval, paired_interval
from planner.spec import ModelSpec

OURS = ("planned", "one after the other", *METHODS)
NOT_MEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class Scores:
    """One method at one share: nats on each document that it ran on, bytes, and numbers found of those asked for."""

    losses: Mapping[str, float]
    needed_bytes: int | None
    stored_bytes: int | None
    passkeys: Sequence[bool]
    pairs: Sequence[bool]
    reached: bool = True


def ours(results: Path, documents: Sequence[str], share: float, method: str, part: str) -> Scores:
    """A plan's cells; `part` is "end" or "half"."""
    name = f"{share:g}-{method}.json"
    losses = {d: read(results / d / name)[part]["loss_nats"] for d in documents if (results / d / name).is_file()}
    plan, recall = results / "plans" / name, results / "recall" / name
    asked = read(recall) if recall.is_file() else {}
    told = read(plan) if plan.is_file() else {"reached": True}
    stored = asked.get("kv_bytes", told.get("kv_bytes"))
    return Scores(losses, stored, stored, asked.get("passkeys", ()), asked.get("pairs", ()), told["reached"])


def theirs(results: Path, documents: Sequence[str], name: str, spec: ModelSpec) -> Scores:
    """A press's cells; bytes are those of its first document."""
    cells = {
        d: read(results / "kvpress" / f"{d}.json") for d in documents if (results / "kvpress" / f"{d}.json").is_file()
    }
    found = {d: cell[name] for d, cell in cells.items() if name in cell}
    needed, stored = counted(next(iter(found.values())), spec) if found else (None, None)
    right = {kind: list(answers(results / "kvpress", kind, name)) for kind in ("passkey", "pair")}
    losses = {d: cell["loss_nats"] for d, cell in found.items()}
    return Scores(losses, needed, stored, right["passkey"], right["pair"], bool(found) or not cells)


def answers(cells: Path, kind: str, name: str) -> list[bool]:
    """Which of the numbers of a kind a press found."""
    told = (read(path) for path in sorted(cells.glob(f"{kind}-*-found.json")))
    return [bool(each[name]) for each in told if name in each]


def report(
    results: Path, domains: Sequence[str], count: int, shares: Sequence[float], spec: ModelSpec, workload: Workload
) -> str:
    """One row for each share and method: KL on the ends of each domain's documents, and how far above the plan's."""
    whole = dense_kv_bytes(spec, workload)
    head = ["share", "method", "bytes", "stored", "passkeys", "pairs"]
    for domain in domains:
        head += [f"{domain}: KL nats", "above planned", "second half"]
    rows = [head]
    for share in shares:
        rivals = [(press.name, named(share, press)) for press in PRESSES]
        every = [f"{domain}-{i}" for domain in domains for i in range(count)]
        found = {method: ours(results, every, share, method, "end") for method in OURS}
        found |= {f"kvpress {title}": theirs(results, every, name, spec) for title, name in rivals}
        for method, scores in found.items():
            row = [f"{share:.2%}", method]
            if not scores.reached:
                rows.append([*row, "cannot reach", *[""] * (len(head) - 3)])
                continue
            row += [*(part(size, whole) for size in (scores.needed_bytes, scores.stored_bytes))]
            row += [share_of(scores.passkeys), share_of(scores.pairs)]
            for domain in domains:
                own = [f"{domain}-{i}" for i in range(count)]
                half = ours(results, own, share, method, "half").losses if method in OURS else {}
                row += [*compared(found["planned"].losses, scores.losses, own), mean(list(half.values()), count)]
            rows.append(row)
    return "\n".join(table(rows))


def compared(planned: Mapping[str, float], losses: Mapping[str, float], documents: Sequence[str]) -> tuple[str, str]:
    """The mean with its interval, and the paired interval of what it is above the plan's on the documents of both."""
    both = [d for d in documents if d in planned and d in losses]
    value = mean([losses[d] for d in documents if d in losses], len(documents))
    if not both or all(planned[d] == losses[d] for d in both):
        return value, ""
    above = paired_interval([planned[d] for d in both], [losses[d] for d in both])
    return value, f"{above.value:.4f} [{above.low:.4f}, {above.high:.4f}]"


def mean(losses: Sequence[float], asked: int) -> str:
    """A mean with its interval, and over how many documents where some are missing.

    >>> mean([1.0, 1.0], 2), mean([1.0], 2), mean([], 2)
    ('1.0000 [1.0000, 1.0000]', '1.0000 [1.0000, 1.0000] (1 of 2)', 'not measured')
    """
    if not losses:
        return NOT_MEASURED
    found = mean_interval(losses)
    missing = "" if len(losses) == asked else f" ({len(losses)} of {asked})"
    return f"{found.value:.4f} [{found.low:.4f}, {found.high:.4f}]{missing}"


def part(size: int | None, whole: int) -> str:
    """Bytes as a share of the dense cache's."""
    return NOT_MEASURED if size is None else f"{size / whole:.2%}"


def share_of(found: Sequence[bool]) -> str:
    """How many were found of those asked for."""
    return f"{sum(found)} of {len(found)}" if found else NOT_MEASURED


def read(path: Path) -> dict[str, Any]:
    """A cell."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found
