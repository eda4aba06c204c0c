"""A GPU's operators as the cost model asks for them: one product, one layer's attention."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError
from planner.operators.attention import AttentionModel
from planner.operators.gemm import GemmModel
from planner.operators.sheet import GpuSheet
from planner.spec import LayerSpec

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class GpuOperators:
    """Fitted operator models of a GPU; `gemm` holds pairs of a kind of product and its model.

    Weights of 16 bits are multiplied as they are. Narrower ones are widened inside the kernel, priced as weight-only
    kernels of 8 bits down to 5 and of 4 below: kernels of 3 and 2 bits were measured by nobody, and are taken to be no
    faster than those of 4.
    """

    sheet: GpuSheet
    gemm: tuple[tuple[str, GemmModel], ...]
    attention: AttentionModel

    def product_s(self, bits: float, tokens: float, rows: int, cols: int) -> float:
        """Seconds of [tokens, cols] x [cols, rows]; InputError where the GPU has no model of the kind."""
        kind = "bf16" if bits > 8 else "int8_wo" if bits > 4 else "int4_wo"
        models = dict(self.gemm)
        if kind not in models:
            raise InputError(f"{self.sheet.name}: no model of {kind} products; it has {', '.join(models)}")
        return _product_s(models[kind], self.sheet, kind, tokens, rows, cols)

    def attention_s(
        self, layer: LayerSpec, bits: float, batch: int, tokens: Floats, held: Floats, decode: bool
    ) -> Floats:
        """Seconds of a layer's attention with all its heads alike, in each of some steps.  [steps]

        tokens, held  [steps] new tokens of each sequence, and the cached slots they attend to beside one another; of a
                      decode step the new token's own among them
        """
        new, slots = np.rint(tokens).astype(np.int64), np.rint(held).astype(np.int64)
        width = max(round(bits), 1)
        heads = (layer.q_heads, layer.kv_heads, layer.head_dim)
        if decode:
            return self.attention.decode_s(self.sheet, batch, *heads, np.maximum(slots, 1), width)
        return self.attention.prefill_s(self.sheet, batch, *heads, new, slots, width)


@lru_cache(maxsize=2**14)
def _product_s(model: GemmModel, sheet: GpuSheet, kind: str, tokens: float, rows: int, cols: int) -> float:
    """Most layers of a model are alike."""
    return float(model.latency_s(sheet, kind, tokens, rows, cols))
