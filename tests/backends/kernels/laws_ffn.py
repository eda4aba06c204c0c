"""Bundled neurons: right on any of them, the dense network where those left out are zero, and repeatable."""

import pytest
import torch

from backends.kernels import bundled_ffn as module
from backends.kernels.bundled_ffn import Shape, bundled, bundled_ffn, bundled_ffn_op, launches, variants
from backends.kernels.counting import counted
from tests.backends.kernels.agreement import agree, cases


@pytest.mark.parametrize(("shape", "dtype"), cases(module), ids=str)
def test_networks_agree_with_float64(shape: Shape, dtype: torch.dtype) -> None:
    for variant in variants(shape)[:2]:
        agree(module.check(shape, variant, dtype, seed=1), dtype)


def network() -> tuple[torch.Tensor, ...]:
    """A token, and a gated ReLU network of 60 neurons."""
    draw = torch.Generator().manual_seed(2)
    gate, up = torch.randn(60, 64, generator=draw), torch.randn(60, 64, generator=draw)
    return torch.randn(1, 64, generator=draw), gate, up, torch.randn(64, 60, generator=draw)


def test_the_neurons_that_fire_are_the_network() -> None:
    x, gate, up, down = network()
    dense = ((x @ gate.T).relu() * (x @ up.T)) @ down.T
    fire = (x @ gate.T > 0)[0].nonzero()[:, 0].int()
    assert len(fire) < 60
    got = bundled_ffn(x, bundled(gate, up, down), fire)
    assert (got - dense).norm() < 1e-5 * dense.norm()
    assert torch.equal(got, bundled_ffn(x, bundled(gate, up, down), fire))


def test_of_neurons_left_out_nothing_is_read() -> None:
    x, gate, up, down = network()
    bundles = bundled(gate, up, down)
    bundles[7] = torch.nan
    some = torch.tensor([3, -1, 9, 41, -1], dtype=torch.int32)
    assert bool(bundled_ffn(x, bundles, some).isfinite().all())
    assert not bundled_ffn(x, bundles, some[:0]).any()
    with counted() as traffic:
        bundled_ffn(x, bundles, some)
    shape = Shape(m=1, hidden=64, neurons=60, active=3, padding=2)
    needed = launches(shape, variants(shape)[0], torch.float32)
    assert [moved.programs for moved in traffic] == [launch.programs for launch in needed]
    assert traffic[0].read.distinct <= needed[0].bytes_read + 64


def test_it_traces_as_one_operator() -> None:
    x, gate, up, down = network()
    args = (x, bundled(gate, up, down), torch.tensor([1, 2], dtype=torch.int32), "silu")
    torch.library.opcheck(bundled_ffn_op, args, test_utils=("test_schema", "test_faketensor"))


def test_what_does_not_fit_is_refused() -> None:
    x, gate, up, down = network()
    some = torch.tensor([1], dtype=torch.int32)
    with pytest.raises(ValueError, match=r"^bundles: found"):
        bundled_ffn(x.half(), bundled(gate, up, down), some)
    with pytest.raises(ValueError, match=r"^activation, active: found 'tanh'"):
        bundled_ffn(x, bundled(gate, up, down), some, "tanh")
