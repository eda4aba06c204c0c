"""The operators of a GPU by the formulae that come with the planner, fitted to it or carried over from another."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from planner.errors import InputError
from planner.operators.collective import all_reduce_model
from planner.operators.formula import FormulaOperators
from planner.operators.gemm import KINDS, GemmModel
from planner.operators.sheet import GpuSheet
from profiles.silicon.attention_data import attention_model
from profiles.silicon.fit_gemm import WEIGHT_COPIES
from profiles.silicon.fitted import gemm_choice

FRAMEWORKS = ("trtllm", "sglang", "vllm")
LONGEST_LAUNCH_S = 25e-6
"""Beyond it a table timed the host that issues a product's kernels one by one; a server replays them from a graph."""


def deployed(sheet: GpuSheet, framework: str) -> FormulaOperators:
    """A framework's operators as a server runs them: weights never cached, kernels replayed from graphs."""
    replayed = _gemm(sheet, (framework, *FRAMEWORKS), longest_launch_s=LONGEST_LAUNCH_S)
    gemm = {kind: replace(model, issue_s=0.0) for kind, model in replayed.items()}
    return replace(benchmarked(sheet, framework), gemm=gemm, weight_copies=float("inf"))


def benchmarked(sheet: GpuSheet, framework: str) -> FormulaOperators:
    """A framework's operators as the tables' benchmark runs them, kernels that the host issues one by one included."""
    return FormulaOperators(
        sheet=sheet,
        gemm=_gemm(sheet, (framework,)),
        attention=attention_model(sheet, framework).model,
        all_reduce=all_reduce_model(framework),
        weight_copies=WEIGHT_COPIES,
    )


def _gemm(
    sheet: GpuSheet, frameworks: Sequence[str], longest_launch_s: float = float("inf")
) -> Mapping[str, GemmModel]:
    """The model of every kind that the GPU has a throughput for and some table has rows of.

    Of the frameworks in turn the first whose kernels start in time, or the first of all.
    """
    found: dict[str, GemmModel] = {}
    for kind, formats in KINDS.items():
        try:
            sheet.rate(formats.multiplied)
            models = [gemm_choice(sheet, framework, kind).model for framework in frameworks]
        except InputError:
            continue  # asked for by nobody, or refused by FormulaOperators with the kinds there are
        prompt = (model for model in models if model.launch_kclocks * 1e3 / sheet.boost_hz < longest_launch_s)
        found[kind] = next(prompt, models[0])
    return found
