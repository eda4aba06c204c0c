"""How far predicted deployments are from measured ones: by model and framework, beside a pure roofline."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass

import numpy as np

from planner.explain import table
from planner.operators.serving import Served
from profiles.silicon.deployments import Deployment
from profiles.silicon.engine_fit import Constants, Predicted
from profiles.silicon.regimes import Accuracy, accuracy

WORST = 8


@dataclass(frozen=True, slots=True)
class Group:
    """Some deployments, and by predictor the error of each of the two times."""

    name: str
    rows: int
    tpot: Mapping[str, Accuracy]
    ttft: Mapping[str, Accuracy]


@dataclass(frozen=True, slots=True)
class Miss:
    """One deployment that was predicted badly, in seconds."""

    name: str
    predicted: Served
    measured: Served


@dataclass(frozen=True, slots=True)
class DeploymentReport:
    """The errors of all groups, the constants of every predictor, and the deployments its first one misses most."""

    target: str
    groups: tuple[Group, ...]
    constants: Mapping[str, tuple[Constants, ...]]
    worst: tuple[Miss, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        return {
            "target": self.target,
            "groups": [asdict(group) for group in self.groups],
            "constants": {name: [asdict(one) for one in found] for name, found in self.constants.items()},
            "worst": [asdict(miss) for miss in self.worst],
            "notes": list(self.notes),
        }

    def as_text(self) -> str:
        lines = ["Time per token after the first (MAPE, median, 90th percentile of the error in %)", ""]
        lines += _errors(self.groups, lambda group: group.tpot)
        lines += ["", "Time to first token", "", *_errors(self.groups, lambda group: group.ttft), ""]
        for predictor, found in self.constants.items():
            for one in found:
                lines.append(
                    f"{predictor}: {one.framework} {one.model}: {one.kernel_s * 1e6:.2f} us a small kernel, "
                    f"{one.sequence_s * 1e6:.1f} us a sequence and step; fitted on {one.fitted_on}"
                )
        lines += ["", "Missed most, ms predicted / measured:"]
        for miss in self.worst:
            tpot = f"{miss.predicted.tpot_s * 1e3:.2f} / {miss.measured.tpot_s * 1e3:.2f} per token"
            ttft = f"{miss.predicted.ttft_s * 1e3:.0f} / {miss.measured.ttft_s * 1e3:.0f} to the first"
            lines.append(f"  {miss.name}: {tpot}, {ttft}")
        return "\n".join([*lines, *(f"note: {note}" for note in self.notes)])


def compare(
    target: str, deployments: Sequence[Deployment], predictors: Mapping[str, Predicted], notes: Sequence[str]
) -> DeploymentReport:
    """The report of predictors over deployments; the worst rows are the first predictor's.

    Deployments that a predictor cannot place, for want of memory, are left out for all and noted.
    """
    placed = [row for row in range(len(deployments)) if all(one.served[row] is not None for one in predictors.values())]
    unplaced = len(deployments) - len(placed)
    kept = [deployments[row] for row in placed]
    served = {
        name: [found for row in placed if (found := one.served[row]) is not None] for name, one in predictors.items()
    }
    groups = tuple(_group(name, rows, kept, served) for name, rows in _groups(kept))
    worst = sorted(zip(served[next(iter(predictors))], kept, strict=True), key=_badness, reverse=True)[:WORST]
    if unplaced:
        notes = (*notes, f"{unplaced} rows whose weights leave no room for a request by our count of memory")
    return DeploymentReport(
        target=target,
        groups=groups,
        constants={name: one.constants for name, one in predictors.items() if one.constants},
        worst=tuple(Miss(_said(one), found, Served(one.ttft_s, one.tpot_s)) for found, one in worst),
        notes=tuple(notes),
    )


def _groups(deployments: Sequence[Deployment]) -> Iterator[tuple[str, list[int]]]:
    """All rows, those whose type or load the table states, every framework's, and every model's under it."""
    every = range(len(deployments))
    yield "all dense, aggregated", list(every)
    yield "  that state their concurrency", [row for row in every if deployments[row].stated_load]
    yield "  that state their type", [row for row in every if deployments[row].stated_type]
    for framework in dict.fromkeys(deployment.framework for deployment in deployments):
        ours = [row for row in every if deployments[row].framework == framework]
        yield framework, ours
        typed = [row for row in ours if deployments[row].stated_type]
        if 0 < len(typed) < len(ours):
            yield "  that state their type", typed
        for key in dict.fromkeys(_key(deployments[row]) for row in ours):
            yield f"  {key}", [row for row in ours if _key(deployments[row]) == key]


def _key(deployment: Deployment) -> str:
    unstated = "" if deployment.stated_load else ", concurrency not stated"
    return f"{deployment.model} {deployment.kind}{unstated}"


def _group(
    name: str, rows: Sequence[int], deployments: Sequence[Deployment], served: Mapping[str, Sequence[Served]]
) -> Group:
    tpot = np.array([deployments[row].tpot_s for row in rows])
    ttft = np.array([deployments[row].ttft_s for row in rows])
    return Group(
        name=name,
        rows=len(rows),
        tpot={key: accuracy(np.array([found[row].tpot_s for row in rows]), tpot) for key, found in served.items()},
        ttft={key: accuracy(np.array([found[row].ttft_s for row in rows]), ttft) for key, found in served.items()},
    )


def _errors(groups: Sequence[Group], of: Callable[[Group], Mapping[str, Accuracy]]) -> list[str]:
    """One line a group, three columns a predictor."""
    head = ["", "rows"]
    for predictor in of(groups[0]):
        head += [predictor, "", ""]
    rows = [head]
    for group in groups:
        cells = [group.name, f"{group.rows}"]
        for error in of(group).values():
            cells += [f"{100 * share:.1f}" for share in (error.mape, error.median, error.p90)]
        rows.append(cells)
    return table(rows)


def _badness(pair: tuple[Served, Deployment]) -> float:
    served, deployment = pair
    return abs(served.tpot_s / deployment.tpot_s - 1)


def _said(one: Deployment) -> str:
    load = one.load
    shape = f"{load.prompt} + {load.output} tokens, {load.concurrency} clients"
    return f"{one.framework} {one.model} {one.kind} on {one.gpus}, {shape}"
