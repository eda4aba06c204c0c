"""The next token, drawn from logits."""

import numpy as np
from numpy.typing import NDArray

from planner.serving.engine import Sampling

COLDEST = 1e-4
"""Below this temperature the likeliest token is all that is left to draw."""


class Sampler:
    """Draws the tokens of one reply; the same seed and logits give the same tokens, whatever else is running.

    >>> Sampler(Sampling(temperature=0)).pick(np.array([0.1, 2.0, 1.0], np.float32))
    1
    >>> nearly = Sampler(Sampling(top_p=0.6, seed=1))
    >>> {nearly.pick(np.array([0.1, 9.0, 1.0], np.float32)) for _ in range(99)}
    {1}
    """

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._random = np.random.default_rng(sampling.seed)

    def pick(self, logits: NDArray[np.float32]) -> int:
        """A token for logits [vocab]."""
        if self.sampling.temperature < COLDEST:
            return int(logits.argmax())
        likely = np.exp((logits - logits.max()) / np.float32(self.sampling.temperature))
        tokens = nucleus(likely, self.sampling.top_p)
        upto = likely[tokens].cumsum(dtype=np.float64)
        at = int(np.searchsorted(upto, self._random.random() * upto[-1], side="right"))
        return int(tokens[min(at, len(tokens) - 1)])


def nucleus(likely: NDArray[np.float32], top_p: float) -> NDArray[np.int64]:
    """The fewest likeliest tokens that together have `top_p` of the weight; of equals, all.

    >>> nucleus(np.array([1.0, 6.0, 3.0, 3.0], np.float32), 0.6).tolist()
    [1, 2, 3]
    """
    if top_p >= 1:
        return np.arange(len(likely))
    # Sorted as values, for that is several times faster than as positions.
    falling = np.sort(likely)[::-1]
    upto = falling.cumsum(dtype=np.float64)
    last = min(int(np.searchsorted(upto, top_p * upto[-1])), len(falling) - 1)
    return np.flatnonzero(likely >= falling[last])
