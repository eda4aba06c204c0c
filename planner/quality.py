"""Numbers that compare a planned model with the dense one: KL, perplexity, bootstrap intervals over documents."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from planner.plan import Interval

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class DocumentScore:
    """One document's means over its scored positions: KL(dense || planned) and the text's negative log-likelihood."""

    loss_nats: float
    nll_nats: float


def compare(dense: NDArray[np.float32], planned: NDArray[np.float32], targets: Sequence[int]) -> DocumentScore:
    """Score a document from log-probabilities [positions, vocab] of both models; `targets` are the true next tokens.

    The last position has no target and counts for the KL only.

    >>> half = np.log(np.array([[0.5, 0.5], [0.5, 0.5]], np.float32))
    >>> skew = np.log(np.array([[0.25, 0.75], [0.5, 0.5]], np.float32))
    >>> score = compare(half, skew, [1])
    >>> round(score.loss_nats, 4), round(score.nll_nats, 4)
    (0.0719, 0.2877)
    """
    total = 0.0
    for start in range(0, len(dense), 128):  # in slices: the products of a large vocabulary are large
        p, q = dense[start : start + 128], planned[start : start + 128]
        total += float((np.exp(p) * (p - q)).sum(dtype=np.float64))
    rows = np.arange(len(targets))
    return DocumentScore(
        loss_nats=total / len(dense),
        nll_nats=float(-planned[rows, list(targets)].mean(dtype=np.float64)),
    )


def mean_interval(values: Sequence[float], seed: int = 0) -> Interval:
    """The mean over documents with its 95 % bootstrap interval.

    >>> mean_interval([1.0, 1.0, 1.0])
    Interval(value=1.0, low=1.0, high=1.0)
    """
    x = np.asarray(values, np.float64)
    chance = np.random.default_rng(seed)
    means = x[chance.integers(0, len(x), (RESAMPLES, len(x)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return Interval(float(x.mean()), float(low), float(high))


def paired_interval(ours: Sequence[float], theirs: Sequence[float], seed: int = 0) -> Interval:
    """Mean difference theirs - ours over the same documents with its 95 % interval; above zero, ours is better."""
    return mean_interval([b - a for a, b in zip(ours, theirs, strict=True)], seed)


def perplexity(nll: Interval) -> Interval:
    """exp of a mean negative log-likelihood and of its interval."""
    return Interval(math.exp(nll.value), math.exp(nll.low), math.exp(nll.high))
