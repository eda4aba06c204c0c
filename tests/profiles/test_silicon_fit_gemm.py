"""Fitting products: what a known model made is found again on shapes no fit saw; what ships keeps what it promises."""

from dataclasses import replace

import numpy as np
import pytest

from planner.errors import InputError
from profiles.silicon import fit as command
from profiles.silicon.fit_gemm import (
    PINNED_TO_TRANSFER,
    START,
    WEIGHT_COPIES,
    errors,
    fit,
    kept_out,
    missed,
    predicted_s,
    sizes,
    validated,
)
from profiles.silicon.fitted import gemm_choice, measured_gpus, transferred
from profiles.silicon.tables import GemmTable
from profiles.targets import gpu_sheet

A100, H100 = gpu_sheet("a100"), gpu_sheet("h100")
TRUTH = replace(START, launch_kclocks=5.0, read_share=0.8, edge_time=0.3, load_bytes_per_clock=28.0)


def table(kind: str = "bf16", noise: float = 0.0) -> GemmTable:
    """What TRUTH says of an A100, over shapes from a decode step's to a prefill's."""
    axes = np.meshgrid([1, 8, 48, 160, 512, 3072], [256, 1024, 5120, 16384], [256, 1536, 4096, 16384])
    m, n, k = (axis.ravel().astype(np.int64) for axis in axes)
    latency_s = TRUTH.latency_s(A100, kind, m, n, k, WEIGHT_COPIES)
    latency_s *= np.exp(np.random.default_rng(1).normal(0, noise, len(m)))
    return GemmTable("vllm", "0", kind, m, n, k, latency_s)


@pytest.fixture(scope="module")
def fitted() -> GemmTable:
    return table()


def test_a_known_model_is_found_again(fitted: GemmTable) -> None:
    model = fit([(A100, fitted)])
    assert errors(model, A100, fitted)["all"].mape < 0.02 < errors(START, A100, fitted)["all"].mape


def test_pinned_parameters_stay(fitted: GemmTable) -> None:
    model = fit([(A100, fitted)], pinned=PINNED_TO_TRANSFER)
    assert all(getattr(model, name) == getattr(START, name) for name in PINNED_TO_TRANSFER)
    assert model.launch_kclocks != START.launch_kclocks


def test_backing_by_the_table_repairs_a_wrong_formula_on_rows_it_never_saw(fitted: GemmTable) -> None:
    formula, backed = validated(predicted_s(START, A100, fitted), fitted)
    assert formula == errors(START, A100, fitted) and formula.keys() == backed.keys()
    assert backed["all"].mape < formula["all"].mape / 2
    assert backed["all"].rows == np.count_nonzero(kept_out(fitted))


def test_rows_kept_out_do_not_leak_into_what_backs_them(fitted: GemmTable) -> None:
    out = kept_out(fitted)
    spoilt = replace(fitted, latency_s=np.where(out, 1e3, fitted.latency_s))
    formula_s = predicted_s(START, A100, fitted)
    seen, unseen = (missed(formula_s, one).factor(sizes(one)) for one in (fitted, spoilt))
    assert (seen == unseen).all()
    assert fit([(A100, spoilt)]) == fit([(A100, fitted)])


def test_shipped_products_of_sixteen_bits_keep_what_they_promise() -> None:
    for gpu, backed_mape in (("a100", 0.06), ("h100", 0.05)):
        (fits,) = (one for one in measured_gpus() if one.sheet.name == gpu)
        (primary,) = (one for one in fits.fits if (one.framework, one.kind) == ("vllm", "bf16"))
        assert primary.errors["n,k >= 1024"].mape < 0.08 and primary.errors["all"].mape < 0.09
        assert primary.backed_errors["n,k >= 1024"].mape < backed_mape
        assert primary.backed_errors["n,k >= 1024"].median < 0.036
    (carried,) = (one for one in transferred().fits if one.kind == "bf16")
    assert all(carried.errors[gpu]["n,k >= 1024"].mape < 0.12 for gpu in ("a100", "h100"))


def test_shipped_fits_are_in_the_units_of_the_shipped_sheets() -> None:
    assert [one.sheet for one in measured_gpus()] == [A100, H100]


def test_weights_of_four_bits_win_for_few_rows_and_lose_for_many() -> None:
    narrow, wide = (gemm_choice(A100, "trtllm", kind).model for kind in ("int4_wo", "bf16"))
    m = np.array([1, 16, 256, 512, 1024, 2048])
    ratio = narrow.latency_s(A100, "int4_wo", m, 12288, 12288) / wide.latency_s(A100, "bf16", m, 12288, 12288)
    assert (ratio[:2] < 0.5).all() and (ratio[2:] > 1).all()


def test_a_gpu_gets_its_own_fit_then_that_of_its_generation_then_what_carries_over() -> None:
    def origin(name: str, framework: str = "vllm", kind: str = "bf16") -> str:
        return gemm_choice(gpu_sheet(name), framework, kind).origin

    assert origin("a100") == "fitted to vllm 0.14.0 on a100"
    assert origin("a100", "trtllm", "int4_wo") == origin("a100", "vllm", "int4_wo") == "fitted to trtllm 1.0.0 on a100"
    assert origin("h200") == "fitted to vllm 0.24.0 on h100, carried over"
    assert origin("l40s", "sglang") == "fitted to sglang 0.5.10 on a100, carried over"
    assert origin("l40s", "vllm", "fp8") == "fitted to h100, carried over"
    assert origin("mi300x") == "fitted to a100, h100, carried over"
    assert gemm_choice(gpu_sheet("h200"), "vllm", "fp4").origin == "fitted to vllm 0.24.0 on h100, carried over"


def test_what_carries_over_has_the_error_of_a_gpu_left_out() -> None:
    (carried,) = (one for one in transferred().fits if one.kind == "bf16")
    worst = max(carried.errors[gpu]["all"].mape for gpu in carried.errors)
    assert gemm_choice(gpu_sheet("h200"), "vllm", "bf16").errors["all"].mape == worst


def test_a_kind_nobody_measured_is_refused() -> None:
    with pytest.raises(InputError, match="no int3 product was measured; known: bf16"):
        gemm_choice(A100, "vllm", "int3")


def test_every_shipped_model_prices_every_product() -> None:
    shapes = [axis.ravel() for axis in np.meshgrid([1, 17, 4096], [32, 5120], [32, 16384])]
    for gpu in measured_gpus():
        for one in gpu.fits:
            priced = predicted_s(one.model, gpu.sheet, GemmTable("", "", one.kind, *shapes, latency_s=np.ones(12)))
            assert np.isfinite(priced).all() and (priced > 1e-6).all() and (priced < 1).all()


@pytest.mark.parametrize("arguments", [[], ["a100"], ["a100="]])
def test_fitting_again_says_what_it_wants(arguments: list[str]) -> None:
    with pytest.raises(InputError, match=r"usage: python -m profiles\.silicon\.fit TARGET=DIR"):
        command.main(arguments)
