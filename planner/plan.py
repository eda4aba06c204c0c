"""The plan: one candidate per site, where it came from, and what it costs, predicted and measured apart."""

import hashlib
from dataclasses import dataclass, replace

from planner.errors import InvalidSpace
from planner.goal import Goal, Workload
from planner.space import Choice, Chosen, Constraint, KvChoice, KvSite, Site, WeightChoice, WeightSite, violated


@dataclass(frozen=True, slots=True)
class Interval:
    """A number and the range it is expected in.

    >>> str(Interval(0.05, 0.04, 0.07))
    '0.05 [0.04, 0.07]'
    """

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"


@dataclass(frozen=True, slots=True)
class Costs:
    """The three currencies at the workload's longest context and whole batch; None where a number does not exist.

    `source` says where the seconds come from: predicted from a data sheet, predicted from measurements, or measured.
    """

    source: str
    kv_bytes: int
    weight_bytes: int
    memory_bytes: int
    loss_nats: Interval | None
    decode_s: Interval | None
    ttft_s: Interval | None
    perplexity: Interval | None = None
    passkey: float | None = None


@dataclass(frozen=True, slots=True)
class SolverReport:
    """How the choice was found: status, proved relative gap, and the objective's price of one more unit of a limit."""

    status: str
    gap: float
    objective: float
    bound: float
    shadow_prices: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class Provenance:
    """All that decided the plan; the same inputs give the same plan, byte for byte."""

    weights_sha256: str
    profile_sha256: str
    target_sha256: str
    target: str
    backend: str
    passes: tuple[str, ...]
    seed: int
    planner_version: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What compile decides and a backend carries out."""

    name: str
    workload: Workload
    goal: Goal
    provenance: Provenance
    kv: tuple[tuple[KvSite, KvChoice], ...]
    weights: tuple[tuple[WeightSite, WeightChoice], ...]
    constraints: tuple[Constraint, ...]
    solver: SolverReport | None
    predicted: Costs | None
    measured: Costs | None = None
    quality_verified: bool = False
    speed_measured: bool = False

    def __post_init__(self) -> None:
        broken = violated(self.chosen, self.constraints)
        if broken is not None:
            raise InvalidSpace(f"plan {self.name}: breaks {broken}")

    @property
    def chosen(self) -> dict[Site, Choice]:
        return {**dict(self.kv), **dict(self.weights)}

    def without_measurement(self) -> "Plan":
        """The part that re-solving reproduces byte for byte."""
        return replace(self, measured=None, quality_verified=False, speed_measured=False)


def trial(name: str, workload: Workload, chosen: Chosen) -> Plan:
    """A plan of no provenance and no price, to be run and thrown away."""
    return Plan(
        name=name,
        workload=workload,
        goal=Goal(),
        provenance=Provenance("", "", "", "", "", (), 0, ""),
        kv=tuple((s, c) for s, c in chosen.items() if isinstance(s, KvSite) and isinstance(c, KvChoice)),
        weights=tuple((s, c) for s, c in chosen.items() if isinstance(s, WeightSite) and isinstance(c, WeightChoice)),
        constraints=(),
        solver=None,
        predicted=None,
    )


def sha256(text: str) -> str:
    """Hex digest of a text, the identity of a document."""
    return hashlib.sha256(text.encode()).hexdigest()
