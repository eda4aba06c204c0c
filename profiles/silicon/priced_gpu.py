"""A GPU's operators as the cost model asks for them, and how far off they are."""

from dataclasses import dataclass
from functools import lru_cache

from planner.operators.gpu import GpuOperators
from planner.operators.sheet import GpuSheet
from profiles.silicon.attention_data import attention_model
from profiles.silicon.fitted import gemm_choice
from profiles.silicon.fitted_operators import deployed


@dataclass(frozen=True, slots=True)
class PricedGpu:
    """A GPU's operators, and what share of a time nine predictions in ten are off by at most."""

    operators: GpuOperators
    error: float


@lru_cache
def gpu_operators(sheet: GpuSheet, framework: str = "vllm") -> PricedGpu:
    """A framework's products and attention.

    The error is the larger of the two operators' ninth deciles: of products with real layers' matrices and of all
    decode attention, on rows that no fit saw; for a GPU without tables, on the GPU that the fit was carried to worst.
    """
    found, attention = deployed(sheet, framework), attention_model(sheet, framework)
    products = gemm_choice(sheet, framework, "bf16")
    errors = products.errors["n,k >= 1024"].p90, attention.errors["decode, all"].p90
    return PricedGpu(GpuOperators(sheet, tuple(found.gemm.items()), attention.model), max(errors))
