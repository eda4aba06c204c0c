"""Products with packed matrices: right at every width, group and odd size, repeatable, and reading no byte twice."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn import functional

from backends.kernels import dequant_matmul as module
from backends.kernels.counting import counted
from backends.kernels.dequant_matmul import Shape, dequant_matmul, dequant_matmul_op, inputs, launches, variants
from backends.transformers.grouped import quantise
from backends.transformers.runner import Packed, pack
from tests.backends.kernels.agreement import agree, cases


def kinds(shape: Shape) -> list[object]:
    """The first variant of each way through the kernel: codes or weights in the product, split or not."""
    found = {}
    for variant in variants(shape):
        way = (variant.tile("BLOCK_K") == shape.group, variant.tile("SPLIT_K") > 1)
        found.setdefault(way, variant)
    return list(found.values())


@pytest.mark.parametrize(("shape", "dtype"), cases(module), ids=str)
def test_products_agree_with_float64(shape: Shape, dtype: torch.dtype) -> None:
    for variant in kinds(shape):
        agree(module.check(shape, variant, dtype, seed=1), dtype)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_products_are_those_of_the_transformers_runtime(bits: int) -> None:
    made = torch.Generator().manual_seed(bits)
    codes, scale, minimum = quantise(torch.randn(24, 192, generator=made), bits, 64)
    parts = {"w::codes": pack(codes, bits), "w::scale": scale, "w::minimum": minimum}
    packed = Packed("w", {"scheme": "grouped", "bits": bits, "offset": None}, parts)
    x = torch.randn(2, 3, 192, generator=made)
    wanted = functional.linear(x, packed.dense())
    got = dequant_matmul(x, packed.codes, packed.scale, packed.minimum)
    assert (got - wanted).norm() < 1e-5 * wanted.norm()


def test_split_products_repeat() -> None:
    shape = Shape(m=1, n=40, k=576, bits=4, group=32)
    split = next(variant for variant in variants(shape) if variant.tile("SPLIT_K") > 1)
    made = inputs(shape, torch.float16, seed=3)
    assert torch.equal(dequant_matmul(*made, variant=split), dequant_matmul(*made, variant=split))


@pytest.mark.parametrize("bits", [3, 4])
def test_every_byte_is_loaded_once(bits: int) -> None:
    shape = Shape(m=1, n=64, k=1024, bits=bits, group=64)
    with counted() as traffic:
        dequant_matmul(*inputs(shape, torch.float16, seed=4))
    for moved, needed in zip(traffic, launches(shape, variants(shape)[0]), strict=True):
        assert moved.programs == needed.programs
        assert moved.read.distinct <= 1.05 * needed.bytes_read
        assert moved.written.distinct <= 1.05 * needed.bytes_written


def test_nothing_times_a_matrix_is_nothing() -> None:
    _, *matrix = inputs(Shape(m=1, n=16, k=64, bits=4, group=32), torch.float16, seed=5)
    assert dequant_matmul(torch.empty(0, 64, dtype=torch.float16), *matrix).shape == (0, 16)


def test_it_traces_as_one_operator() -> None:
    made = inputs(Shape(m=2, n=16, k=64, bits=4, group=32), torch.float16, seed=6)
    torch.library.opcheck(dequant_matmul_op, made, test_utils=("test_schema", "test_faketensor"))
    traced = make_fx(lambda *tensors: dequant_matmul_op(*tensors, 0), tracing_mode="fake")(*made[:4])
    assert [node.target for node in traced.graph.nodes if node.op == "call_function"] == [
        torch.ops.planned.dequant_matmul.default
    ]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("codes", lambda x, codes, scale, low: (x, codes[:, :-1], scale, low)),
        ("scale", lambda x, codes, scale, low: (x, codes, scale[:, :-1], low)),
        ("minimum", lambda x, codes, scale, low: (x, codes, scale, low[:-1])),
        ("x, codes", lambda x, codes, scale, low: (x.double(), codes, scale, low)),
    ],
)
def test_what_does_not_fit_is_refused(name: str, change: object) -> None:
    x, codes, scale, low, _ = inputs(Shape(m=1, n=8, k=96, bits=4, group=32), torch.float16, seed=7)
    with pytest.raises(ValueError, match=f"^{name}: found"):
        dequant_matmul(*change(x, codes, scale, low))
