"""The driver of passes: name each, time it, check what it returns, keep a snapshot. A pass contains only its idea."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import ClassVar, Protocol

from planner import prices
from planner.executor import Capabilities
from planner.goal import Goal, Workload
from planner.hardware import HardwareProfile
from planner.loss import LossModel
from planner.space import (
    FLOAT16,
    FLOAT32,
    Choice,
    Full,
    KvChoice,
    KvSite,
    Site,
    Space,
    Tier,
    WeightChoice,
    WeightFormat,
    check,
)
from planner.spec import ModelSpec


@dataclass(frozen=True)
class PassContext:
    """All that a pass may know. Frozen: a pass reads it, returns a space, and leaves nothing behind.

    `loss` is None for a model without weights and without an imported profile: then lossy options are not offered.
    """

    spec: ModelSpec
    workload: Workload
    goal: Goal
    hardware: HardwareProfile
    capabilities: Capabilities
    loss: LossModel | None
    seed: int = 0

    @property
    def home(self) -> Tier:
        """The fastest tier, where everything starts."""
        return ((self.hardware.fastest.name, 1.0),)

    @property
    def sinks(self) -> int:
        """Protected tokens that the prices were measured with."""
        return 0 if self.loss is None else self.loss.profile.kv.sinks

    def price(self, space: Space) -> prices.PriceTable:
        """The space in the three currencies."""
        classes = self.capabilities.classes_per_layer
        return prices.price(space, self.spec, self.workload, self.goal, self.hardware, self.loss, classes)


class Pass(Protocol):
    """A method: a frozen dataclass whose fields are its options. Takes a valid space and returns a valid space."""

    name: ClassVar[str]

    def run(self, space: Space, ctx: PassContext) -> Space: ...


@dataclass(frozen=True, slots=True)
class Step:
    """What one pass did, for the report's funnel."""

    name: str
    seconds: float
    candidates_before: int
    candidates_after: int


def dense(ctx: PassContext) -> Space:
    """The space that changes nothing: one candidate per site, full precision in the fastest tier."""
    form = FLOAT32 if ctx.hardware.float_bits == 32 else FLOAT16

    def first(site: Site) -> tuple[Choice, ...]:
        if isinstance(site, KvSite):
            return (KvChoice(Full(), form, form, ctx.sinks, ctx.home),)
        return (WeightChoice(WeightFormat(ctx.hardware.float_bits), ctx.home),)

    space = Space({site: first(site) for site in ctx.spec.sites})
    return space.constrain(*ctx.capabilities.constraints(space.sites))


def run(
    passes: Sequence[Pass],
    space: Space,
    ctx: PassContext,
    snapshot: Callable[[str, Space], None] = lambda name, space: None,
) -> tuple[Space, tuple[Step, ...]]:
    """The space after all passes, each checked; `snapshot` sees it after every one of them."""
    steps = []
    for each in passes:
        start = time.perf_counter()
        after = each.run(space, ctx)
        check(after, each.name)
        steps.append(Step(each.name, time.perf_counter() - start, space.size, after.size))
        snapshot(each.name, after)
        space = after
    return space, tuple(steps)


def spelled(each: Pass) -> str:
    """A pass with its options, as --passes takes it.

    >>> from dataclasses import dataclass
    >>> @dataclass(frozen=True)
    ... class Windows:
    ...     name = "windows"
    ...     tokens: tuple[int, ...] = (64, 128)
    >>> spelled(Windows())
    'windows{tokens=64,128}'
    """
    if not is_dataclass(each):
        return each.name
    options = [(f.name, getattr(each, f.name)) for f in fields(each)]
    told = ";".join(f"{k}={','.join(map(str, v)) if isinstance(v, tuple) else v}" for k, v in options)
    return f"{each.name}{{{told}}}" if told else each.name
