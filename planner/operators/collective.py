"""How long an all-reduce between the GPUs of one node takes."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.operators.sheet import GpuSheet

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AllReduceModel:
    """The faster of two kernels, as the runtimes choose: every GPU reads all messages, or each reduces its share.

        one shot   launch + (gpus - 1) * (peer + bytes / (one_shot_share * link))
        two shots  launch + (gpus - 1) * peer + barrier + 2 (gpus - 1) / gpus * bytes / (two_shot_share * link)

    The shares are of the link's data-sheet rate in one direction. A ring and a switch that reduces by itself come out
    as a two-shot kernel with a share above what two GPUs reach.
    """

    launch_s: float
    peer_s: float
    barrier_s: float
    one_shot_share: float
    two_shot_share: float

    def latency_s(self, sheet: GpuSheet, gpus: int, message_bytes: ArrayLike) -> Floats:
        """Seconds until every GPU holds the sum; 0 on one GPU. GPUs without a link of their own use PCIe.

        message_bytes  any shape; the result has it too
        """
        message = np.asarray(message_bytes, np.float64)
        if gpus == 1:
            return np.zeros(message.shape)
        link = sheet.link_bytes_per_s or sheet.pcie_bytes_per_s
        peers = gpus - 1
        one_shot = peers * message / (self.one_shot_share * link)
        two_shot = self.barrier_s + 2 * peers / gpus * message / (self.two_shot_share * link)
        latency: Floats = self.launch_s + peers * self.peer_s + np.minimum(one_shot, two_shot)
        return latency


# Least mean absolute error of the logarithm on the H100 SXM tables of NVIDIA aiconfigurator 0.12.0 (Apache-2.0): 2, 4
# and 8 GPUs, 256 B to 1 GB, kernels replayed from a CUDA graph. Mean error there, in-sample: vLLM 0.24.0 6.7 %,
# TensorRT-LLM 1.3.0rc20 6.4 %, SGLang 0.5.14 7.9 %.
ALL_REDUCE: Mapping[str, AllReduceModel] = {
    "vllm": AllReduceModel(4.26e-6, 6.4e-8, 4.74e-6, 0.586, 0.762),
    "trtllm": AllReduceModel(2.72e-6, 6.7e-8, 26.6e-6, 0.650, 0.770),
    "sglang": AllReduceModel(2.34e-6, 14.6e-8, 4.46e-6, 0.655, 0.722),
}


def all_reduce_model(framework: str) -> AllReduceModel:
    """The model of a framework's all-reduce; vLLM's, the slowest to launch, for one that was never measured."""
    return ALL_REDUCE.get(framework, ALL_REDUCE["vllm"])
