"""What the user asks for: the workload to plan for, what to minimise, and the limits to keep."""

from dataclasses import dataclass, field
from typing import Literal

from planner.errors import InputError

Objective = Literal["loss_nats", "memory_bytes", "kv_bytes", "weight_bytes", "decode_s", "ttft_s"]


@dataclass(frozen=True, slots=True)
class Workload:
    """The requests to plan for.

    A request fills the cache to one of `context_tokens` (prompt and generated tokens together), of which it generates
    `new_tokens`; `weights` says how common each length is. Prompts are read in chunks of `prefill_chunk_tokens`.
    """

    context_tokens: tuple[int, ...] = (2048,)
    weights: tuple[float, ...] = ()
    new_tokens: int = 128
    batch: int = 1
    prefill_chunk_tokens: int = 256

    def __post_init__(self) -> None:
        if not self.context_tokens or min(self.context_tokens) < 32:
            raise InputError(f"workload.context_tokens: found {list(self.context_tokens)}; give lengths of at least 32")
        if len(set(self.context_tokens)) != len(self.context_tokens):
            raise InputError(f"workload.context_tokens: found {list(self.context_tokens)}; each length once")
        if self.weights and (len(self.weights) != len(self.context_tokens) or min(self.weights) <= 0):
            raise InputError("workload.weights: give one positive weight for each length of context_tokens")
        for name in ("new_tokens", "batch", "prefill_chunk_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"workload.{name}: found {getattr(self, name)}; must be at least 1")
        if self.new_tokens >= min(self.context_tokens):
            raise InputError(
                f"workload.new_tokens: {self.new_tokens} leaves no prompt in a context of {min(self.context_tokens)}"
            )

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, normalised to sum to 1."""
        weights = self.weights or (1.0,) * len(self.context_tokens)
        return tuple(w / sum(weights) for w in weights)

    @property
    def longest_tokens(self) -> int:
        return max(self.context_tokens)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a plan must keep; None where there is no limit.

    Bytes hold at the longest context and the whole batch; seconds at the longest context, and at the pessimistic end of
    what is predicted; `kv_share` is kv_bytes over
    the bytes of an uncompressed 16-bit cache.
    """

    loss_nats: float | None = None
    memory_bytes: int | None = None
    kv_bytes: int | None = None
    kv_share: float | None = None
    weight_bytes: int | None = None
    decode_s: float | None = None
    ttft_s: float | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise InputError(f"goal.limits.{name}: found {value}; must be positive")
        if self.kv_bytes is not None and self.kv_share is not None:
            raise InputError("goal.limits: kv_bytes and kv_share say the same thing; give one of them")


@dataclass(frozen=True, slots=True)
class Goal:
    """What to minimise, within which limits."""

    minimise: Objective = "loss_nats"
    limits: Limits = field(default_factory=Limits)
