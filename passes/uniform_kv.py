"""The same windows for every head: the baseline of every method that tells heads or layers apart.

StreamingLLM (Xiao et al., https://arxiv.org/abs/2309.17453) keeps the first tokens and the newest ones. Here the first
tokens are the protected sinks, positions stay those of the text, and the windows are only offered: that all heads take
the same one is what `uniform_settings` and `single_methods` compare with, not a rule of this pass.
"""

from dataclasses import dataclass
from typing import ClassVar

from passes.spans import check_tokens, offer
from planner.pipeline import PassContext
from planner.space import Space, Window


@dataclass(frozen=True, slots=True)
class UniformKv:
    """Offers the same windows at every head, and keeping every token."""

    name: ClassVar[str] = "uniform-kv"
    tokens: tuple[int, ...] = (16, 32, 64, 128, 256, 512, 1024)

    def __post_init__(self) -> None:
        check_tokens("uniform-kv: tokens", self.tokens)

    def run(self, space: Space, ctx: PassContext) -> Space:
        return offer(space, ctx, lambda site: (Window(tokens) for tokens in self.tokens))
