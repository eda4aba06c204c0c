"""The operators of a GPU by the formulae that come with the planner, fitted to it or carried over from another."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache

from planner.errors import InputError
from planner.operators.collective import all_reduce_model
from planner.operators.formula import FormulaOperators
from planner.operators.gemm import KINDS, GemmModel
from planner.operators.gpu import GpuOperators
from planner.operators.sheet import GpuSheet
from profiles.silicon.attention_data import attention_model
from profiles.silicon.fit_gemm import WEIGHT_COPIES
from profiles.silicon.fitted import gemm_choice


def deployed(sheet: GpuSheet, framework: str) -> FormulaOperators:
    """A framework's operators as a server runs them: weights never cached, kernels replayed from graphs."""
    benchmark = benchmarked(sheet, framework)
    gemm = {kind: replace(model, issue_s=0.0) for kind, model in benchmark.gemm.items()}
    return replace(benchmark, gemm=gemm, weight_copies=float("inf"))


def benchmarked(sheet: GpuSheet, framework: str) -> FormulaOperators:
    """A framework's operators as the tables' benchmark runs them, kernels that the host issues one by one included."""
    return FormulaOperators(
        sheet=sheet,
        gemm=_gemm(sheet, framework),
        attention=attention_model(sheet, framework).model,
        all_reduce=all_reduce_model(framework),
        weight_copies=WEIGHT_COPIES,
    )


def _gemm(sheet: GpuSheet, framework: str) -> Mapping[str, GemmModel]:
    """The model of every kind that the GPU has a throughput for and some table has rows of."""
    found: dict[str, GemmModel] = {}
    for kind, formats in KINDS.items():
        try:
            sheet.rate(formats.multiplied)
            found[kind] = gemm_choice(sheet, framework, kind).model
        except InputError:
            continue  # asked for by nobody, or refused by FormulaOperators with the kinds there are
    return found


@dataclass(frozen=True, slots=True)
class PricedGpu:
    """A GPU's operators, and what share of a time nine predictions in ten are off by at most."""

    operators: GpuOperators
    error: float


@lru_cache
def gpu_operators(sheet: GpuSheet, framework: str = "vllm") -> PricedGpu:
    """A framework's products and attention as the cost model asks for them.

    The error is the larger of the two operators' ninth deciles: of products with real layers' matrices and of all
    decode attention, on rows that no fit saw; for a GPU without tables, on the GPU that the fit was carried to worst.
    """
    found, attention = deployed(sheet, framework), attention_model(sheet, framework)
    products = gemm_choice(sheet, framework, "bf16")
    errors = products.errors["n,k >= 1024"].p90, attention.errors["decode, all"].p90
    return PricedGpu(GpuOperators(sheet, tuple(found.gemm.items()), attention.model), max(errors))
