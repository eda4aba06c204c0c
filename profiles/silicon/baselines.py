"""What simple models say of the same rows: a pure roofline, and one with three constants fitted."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ThreeConstants:
    """A roofline at shares of the data sheet's rates, after a launch."""

    launch_s: float
    flop_share: float
    byte_share: float

    def latency_s(self, flop_s: Floats, byte_s: Floats) -> Floats:
        """Seconds of operators whose arithmetic and traffic take this long at the data sheet's rates."""
        return self.launch_s + np.maximum(flop_s / self.flop_share, byte_s / self.byte_share)


def roofline_s(flop_s: Floats, byte_s: Floats) -> Floats:
    """Seconds by the data sheet alone: the longer of arithmetic and traffic.

    >>> roofline_s(np.array([2.0, 1.0]), np.array([1.0, 4.0])).tolist()
    [2.0, 4.0]
    """
    return np.maximum(flop_s, byte_s)


def three_constants(flop_s: Floats, byte_s: Floats, measured_s: Floats) -> ThreeConstants:
    """The launch and the shares that fit measured operators best, by absolute error of the logarithm.

    flop_s, byte_s  [rows]  arithmetic and traffic at the data sheet's rates
    """
    logs = np.log(measured_s)

    def missed(point: Floats) -> Floats:
        return np.log(_model(point).latency_s(flop_s, byte_s)) - logs

    start = np.log((measured_s.min(), 0.7, 0.7))
    return _model(least_squares(missed, start, loss="soft_l1", f_scale=0.01).x)


def _model(point: Floats) -> ThreeConstants:
    launch_s, flop_share, byte_share = np.exp(point).tolist()
    return ThreeConstants(launch_s, flop_share, byte_share)


def gemm_roofline(
    m: Floats, n: Floats, k: Floats, weight_bits: int, activation_bits: int, flop_per_s: float, bytes_per_s: float
) -> tuple[Floats, Floats]:
    """Seconds of arithmetic, and of traffic with each operand moved once, of products [m, k] x [k, n].

    >>> flop_s, byte_s = gemm_roofline(np.array([2.0]), np.array([3.0]), np.array([5.0]), 16, 16, 60.0, 62.0)
    >>> flop_s.tolist(), byte_s.tolist()
    ([1.0], [1.0])
    """
    traffic = n * k * weight_bits / 8 + m * k * activation_bits / 8 + 2 * m * n
    return 2 * m * n * k / flop_per_s, traffic / bytes_per_s
