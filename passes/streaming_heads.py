"""Retrieval heads keep every token, streaming heads the sinks and a short window.

DuoAttention (Xiao et al., https://arxiv.org/abs/2410.10819) trains a gate for every head and cuts at a quantile of the
gates; LServe (https://arxiv.org/abs/2502.14866) takes the same heads. Here both kinds are candidates of every KV head,
and the solver decides by measured loss which head streams: no gates are trained, and there is no share of streaming
heads to choose. The first prefill chunk sees the window like the others (theirs is dense).
"""

from dataclasses import dataclass
from typing import ClassVar

from passes.spans import check_tokens, offer
from planner.pipeline import PassContext
from planner.space import Space, Window


@dataclass(frozen=True, slots=True)
class StreamingHeads:
    """Offers every head to keep all tokens or only its sinks and a short window."""

    name: ClassVar[str] = "streaming-heads"
    recent: tuple[int, ...] = (64, 256)

    def __post_init__(self) -> None:
        check_tokens("streaming-heads: recent", self.recent)

    def run(self, space: Space, ctx: PassContext) -> Space:
        return offer(space, ctx, lambda site: (Window(tokens) for tokens in self.recent))
