"""The operators of a GPU by the formulae that come with the planner, fitted to it or carried over from another."""

from collections.abc import Mapping
from dataclasses import replace

from planner.errors import InputError
from planner.operators.collective import all_reduce_model
from planner.operators.formula import FormulaOperators
from planner.operators.gemm import KINDS, GemmModel
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
