"""A step's times on a grid, so that one look-up costs a microsecond."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from planner.operators.step import Step

Floats = NDArray[np.float64]

# Servers capture graphs at such sizes and fill a batch up to the next, so that no product has an odd row.
TOKENS = np.unique([1, 2, 4, *range(8, 512, 8), *(64 * np.geomspace(8, 512, 56).round())]).astype(np.float64)
BATCHES = np.array([1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 512, 1024], np.float64)
CONTEXTS = np.array([1, 64, 256, 512, 1024, 1536, 2048, 3072, 4096, 6144, 8192, 12288, 16384, 32768], np.float64)


class StepTimes:
    """The times of a step, linear between the points of the grid and in proportion to its last beyond."""

    def __init__(self, step: Step) -> None:
        batch, context = np.meshgrid(BATCHES, CONTEXTS, indexing="ij")
        self._tokens = _Curve(TOKENS, step.tokens_s(TOKENS))
        self._head = _Curve(BATCHES, step.head_s(BATCHES))
        self._prefill = _Curve(CONTEXTS, step.prefill_attention_s(CONTEXTS))
        self._decode = [_Curve(CONTEXTS, row) for row in step.decode_attention_s(batch, context)]
        self._batches = [int(batch) for batch in BATCHES]

    def step_s(self, chunks: Sequence[tuple[int, int]], decoded: int, context: float) -> float:
        """One step: chunks of prompts as (tokens, tokens before them), and `decoded` sequences of `context` on average.

        Causal attention of a chunk is that of the prompt up to its end, less that of the part before it.
        """
        latency_s = self._tokens.at(sum(tokens for tokens, _ in chunks) + decoded)
        latency_s += self._head.at(decoded + len(chunks))
        if decoded:
            latency_s += self._attention_s(decoded, context)
        for tokens, before in chunks:
            latency_s += self._prefill.at(before + tokens) - (self._prefill.at(before) if before else 0.0)
        return latency_s

    def _attention_s(self, batch: int, context: float) -> float:
        above = min(bisect_left(self._batches, batch), len(self._batches) - 1)
        above_s = self._decode[above].at(context)
        if batch >= self._batches[above]:
            return above_s * batch / self._batches[above]
        below_s = self._decode[above - 1].at(context)
        share = (batch - self._batches[above - 1]) / (self._batches[above] - self._batches[above - 1])
        return below_s + (above_s - below_s) * share


class _Curve:
    """A function of one variable through points."""

    def __init__(self, x: Floats, y: Floats) -> None:
        # Lists of floats: one look-up in an array costs as much as this whole function.
        self._x: list[float] = x.tolist()
        self._y: list[float] = y.tolist()

    def at(self, x: float) -> float:
        if x >= self._x[-1]:
            return self._y[-1] * x / self._x[-1]
        if x <= self._x[0]:
            return self._y[0]
        above = bisect_left(self._x, x)
        x0, y0 = self._x[above - 1], self._y[above - 1]
        return y0 + (self._y[above] - y0) * (x - x0) / (self._x[above] - x0)
