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

SCALE_S: Mapping[str, float] = {"vllm": 1.15e-6, "trtllm": 7.3e-6, "sglang": 0.0}
"""The kernel that finds the scale of a few rows of activations, on an H100; SGLang finds it while it rounds them.

From NVIDIA aiconfigurator 0.12.0 (Apache-2.0), quantize/*/computescale_perf, up to a hundred rows.
"""


def deployed(sheet: GpuSheet, framework: str) -> FormulaOperators:
    """A framework's operators as a server runs them.

    Weights are never cached, and kernels replayed from graphs. The tables find the scale of the activations at every
    product of per-tensor fp8; checkpoints store it, and a server skips the kernel that finds it.
    """
    benchmark = benchmarked(sheet, framework)
    gemm = {kind: replace(model, issue_s=0.0) for kind, model in benchmark.gemm.items()}
    if "fp8" in gemm:
        scale_kclocks = SCALE_S.get(framework, 0.0) * sheet.boost_hz / 1e3
        gemm["fp8"] = replace(gemm["fp8"], launch_kclocks=max(0.0, gemm["fp8"].launch_kclocks - scale_kclocks))
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
