"""Fitting the attention kernels of a framework to its table of measured latencies."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.operators.attention import Append, AttentionModel, DecodeKernel, PrefillKernel, Serves, served
from planner.operators.attention_work import Calls, Schedule
from planner.operators.sheet import GpuSheet

Floats = NDArray[np.float64]
K = TypeVar("K", DecodeKernel, PrefillKernel)

# (start, least, most) of every parameter. The starts are what an unfitted kernel would be given, and what parameters
# that the rows say nothing about are drawn to.
Bounds = Mapping[str, tuple[float, float, float]]
_APPEND: Bounds = {
    "append.token_s": (5e-9, 1e-10, 1e-7),
    "append.narrow": (1.2, 0.5, 3.0),
    "append.traffic": (1.0, 0.05, 20.0),
}
DECODE: Bounds = _APPEND | {
    "launch_s": (9e-6, 1e-6, 40e-6),
    "extra_launch_s": (3e-6, 0.1e-6, 10e-6),
    "sequence_s": (3e-9, 1e-10, 3e-6),
    "split_sequence_s": (8e-9, 1e-10, 6e-6),
    "item_cycles": (2000, 50, 30000),
    "item_cycles_per_dim": (8, 0.1, 200),
    "row_cycles_per_dim": (0.1, 0.001, 20),
    "key_cycles": (10, 0.5, 400),
    "key_cycles_per_dim": (0.1, 0.005, 4),
    "alone": (1.0, 0.3, 3.0),
    "partial_s_per_dim": (3e-11, 1e-13, 3e-9),
    "memory_share": (0.9, 0.3, 1.0),
    "l2_rate": (3.0, 1.0, 8.0),
    "l2_share": (0.7, 0.2, 2.0),
    "l2_sharpness": (6.0, 0.5, 12.0),
    "overlap": (2.0, 1.0, 12.0),
}
PREFILL: Bounds = _APPEND | {
    "launch_s": (9e-6, 1e-6, 40e-6),
    "extra_launch_s": (3e-6, 0.1e-6, 10e-6),
    "sequence_s": (3e-9, 1e-11, 3e-7),
    "token_s": (3e-10, 1e-12, 2e-8),
    "item_cycles": (3000, 50, 40000),
    "row_cycles_per_dim": (0.1, 0.001, 20),
    "tensor_share": (0.7, 0.05, 1.0),
    "softmax_cycles": (0.03, 0.0005, 1.0),
    "small_tile": (1.0, 0.3, 4.0),
    "tail": (0.4, 0.02, 2.0),
    "alone": (1.1, 0.3, 3.0),
    "partial_traffic": (0.5, 0.01, 20.0),
    "memory_share": (0.9, 0.3, 1.0),
    "overlap": (1.3, 1.0, 12.0),
    "throttle": (0.05, 0.001, 0.5),
    "throttle_s": (3e-3, 1e-4, 3e-2),
}
