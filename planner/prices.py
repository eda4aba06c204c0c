"""A space priced in the three currencies: a row for every candidate, a column for every resource.

The solver sees nothing but this table; what the columns mean stays here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner import cost
from planner.errors import InputError
from planner.goal import Goal, Workload
from planner.hardware import HardwareProfile
from planner.loss import LossModel
from planner.space import FLOAT16, FLOAT32, Choice, Full, KvChoice, KvSite, Site, Space
from planner.spec import ModelSpec

LOSS = "loss_nats"
SECONDS = ("decode_s", "ttft_s")

AIMED_SHARE = 0.8
"""Share of the user's limit on the loss that a plan is expected to take. A plan expected at the limit itself misses it
on every other text: of SmolLM2's at 512 tokens, one expected to lose 0.0449 nats where 0.05 was allowed lost 0.0522. A
fifth is a margin for another text of the calibration's kind; on other domains the loss may be a third as much again
(planner.loss).
"""


@dataclass(frozen=True, slots=True)
class PriceTable:
    """What every candidate uses (site after site, in the space's order), what is used anyway, and the limits.

    `minimise` names the columns whose largest total is the objective: one, or the stages that overlap in a step.
    `classes`: how many classes of heads a layer may have; each after the first uses `class_toll`. Without it every head
    is charged a class of its own.
    The loss column holds sums of prices: its limit is the sum whose expected loss is AIMED_SHARE of the user's limit.
    """

    groups: tuple[int, ...]
    rows: tuple[str, ...]
    usage: NDArray[np.float64]
    constant: NDArray[np.float64]
    limits: NDArray[np.float64]
    minimise: tuple[int, ...]
    tie_break: tuple[int, ...]
    classes: int | None
    class_toll: NDArray[np.float64]


def price(
    space: Space,
    spec: ModelSpec,
    workload: Workload,
    goal: Goal,
    hardware: HardwareProfile,
    loss: LossModel | None,
    classes_per_layer: int | None = None,
) -> PriceTable:
    """The price table of a space; without a loss model only choices that change nothing can be priced."""
    rows = (LOSS, *cost.rows(hardware))
    physical = _physical(space, spec, workload, hardware, classes_per_layer is not None)
    losses = np.concatenate([_losses(site, choices, loss) for site, choices in space.candidates.items()])
    if bool(np.isnan(losses).any()):
        raise InputError("a candidate has no price in the profile; profile the model again with planner profile model")
    usage = np.column_stack([np.maximum(losses, 0.0), physical])
    fixed = cost.constant(spec, workload, hardware)
    constant = np.array([0.0, *(fixed[row] for row in rows[1:])])
    toll = cost.class_toll(workload, hardware)
    return PriceTable(
        groups=tuple(len(choices) for choices in space.candidates.values()),
        rows=rows,
        usage=usage,
        constant=constant,
        limits=np.array([limit(row, spec, workload, goal, hardware, loss) for row in rows]),
        minimise=stages(goal.minimise, rows),
        tie_break=tuple(rows.index(name) for name in (LOSS, "decode_s.core", "memory_bytes")),
        classes=classes_per_layer,
        class_toll=np.array([0.0, *(toll[row] for row in rows[1:])]),
    )


def _physical(
    space: Space, spec: ModelSpec, workload: Workload, hardware: HardwareProfile, tolled: bool
) -> NDArray[np.float64]:
    """Bytes and seconds of every candidate; heads of like layers that share one tuple of candidates are priced once."""
    first: dict[tuple[object, int], Site] = {}
    like = {
        site: first.setdefault((spec.layers[site.layer] if isinstance(site, KvSite) else site, id(choices)), site)
        for site, choices in space.candidates.items()
    }
    once = {site: space.candidates[site] for site in first.values()}
    if len(once) == len(like):
        return cost.usages(space.candidates, spec, workload, hardware, tolled)
    priced = cost.usages(once, spec, workload, hardware, tolled)
    ends = np.cumsum([len(choices) for choices in once.values()])[:-1]
    rows = dict(zip(once, np.split(priced, ends), strict=True))
    return np.concatenate([rows[site] for site in like.values()])


def _losses(site: Site, choices: Sequence[Choice], loss: LossModel | None) -> list[float]:
    """Prices of one site's choices in nats."""
    if loss is not None:
        return loss.prices(site, choices)
    return [0.0 if lossless(choice) else float("nan") for choice in choices]


def lossless(choice: Choice) -> bool:
    """Whether a choice changes nothing, or no more than rounding to 16 bits, so that it needs no profile."""
    if isinstance(choice, KvChoice):
        return isinstance(choice.span, Full) and {choice.k, choice.v} <= {FLOAT16, FLOAT32}
    return choice.format.scheme in ("native", "unrounded", "float")


def stages(objective: str, rows: tuple[str, ...]) -> tuple[int, ...]:
    """Columns of an objective: itself, or for seconds every stage that overlaps.

    >>> stages("decode_s", ("loss_nats", "decode_s.core", "decode_s.link.dram", "ttft_s.core"))
    (1, 2)
    """
    return tuple(i for i, row in enumerate(rows) if row == objective or row.startswith(f"{objective}."))


def limit(
    row: str,
    spec: ModelSpec,
    workload: Workload,
    goal: Goal,
    hardware: HardwareProfile,
    loss: LossModel | None,
    solved: bool = True,
) -> float:
    """The limit of one column, inf where there is none; tiers are limited by their capacity. On the loss it is that of
    plans that prices make, or of others."""
    limits = goal.limits
    if row == LOSS:
        if limits.loss_nats is None:
            return float("inf")
        if loss is None:
            return limits.loss_nats
        return (loss.correction if solved else loss.plain).sum_for(AIMED_SHARE * limits.loss_nats)
    if row.startswith("bytes."):
        return float(hardware.tier(row.removeprefix("bytes.")).capacity_bytes)
    if row == "kv_bytes" and limits.kv_share is not None:
        return limits.kv_share * dense_kv_bytes(spec, workload)
    name = row.partition(".")[0]
    value = getattr(limits, name)
    if value is None:
        return float("inf")
    return value / hardware.pessimism if name in SECONDS else float(value)


def dense_kv_bytes(spec: ModelSpec, workload: Workload, bits: int = 16) -> int:
    """Bytes of an uncompressed cache at the longest context and the whole batch."""
    tokens = workload.longest_tokens
    each = (
        layer.kv_bytes_per_token(bits) * (tokens if layer.window is None else min(tokens, layer.window))
        for layer in spec.layers
    )
    return workload.batch * sum(each)
