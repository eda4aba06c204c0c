"""The regimes that errors are reported in, and the error of a prediction within one."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Accuracy:
    """How far predictions are from measurements, as shares of the measured: 0.08 is 8 %."""

    rows: int
    mape: float
    median: float
    p90: float


def accuracy(predicted: Floats, measured: Floats) -> Accuracy:
    """The error over all rows; of none, NaN.

    >>> accuracy(np.array([1.1, 2.0, 2.4]), np.array([1.0, 2.0, 2.0]))
    Accuracy(rows=3, mape=0.1, median=0.1, p90=0.18)
    """
    if not len(measured):
        return Accuracy(0, np.nan, np.nan, np.nan)
    error = np.abs(predicted / measured - 1)
    median, p90 = np.quantile(error, (0.5, 0.9))
    return Accuracy(len(error), *(round(float(share), 4) for share in (error.mean(), median, p90)))


def by_regime(predicted: Floats, measured: Floats, regimes: Mapping[str, Mask]) -> dict[str, Accuracy]:
    """The error in every regime that has rows."""
    return {name: accuracy(predicted[rows], measured[rows]) for name, rows in regimes.items() if rows.any()}


def gemm_regimes(m: Ints, n: Ints, k: Ints) -> dict[str, Mask]:
    """Rows of every GEMM regime: all, large weights (the products of a real layer), and those by rows of activations.

    m, n, k  [rows]
    """
    large = (n >= 1024) & (k >= 1024)
    return {
        "all": np.ones(m.shape, np.bool_),
        "n,k >= 1024": large,
        "n,k >= 1024, decode m <= 64": large & (m <= 64),
        "n,k >= 1024, 64 < m < 1024": large & (m > 64) & (m < 1024),
        "n,k >= 1024, prefill m >= 1024": large & (m >= 1024),
    }


def attention_regimes(kv_bytes: NDArray[np.float64] | Ints, l2_bytes: int) -> dict[str, Mask]:
    """Rows of every attention regime, by whether the keys and values read fit the second-level cache.

    kv_bytes  [rows]  keys and values of the whole batch
    """
    fits = kv_bytes <= l2_bytes
    return {"all": np.ones(fits.shape, np.bool_), "KV below L2": fits, "KV above L2": ~fits}
