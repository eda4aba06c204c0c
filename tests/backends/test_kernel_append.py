"""New tokens in ragged, coded caches: byte for byte what the torch runtime stores."""

from collections.abc import Iterator
from dataclasses import asdict

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.kernels import kv_append, packing, rotated
from backends.transformers import runner
from tests.backends.interpreted import Checking, checking


@pytest.fixture(scope="module")
def interpreter() -> Iterator[Checking]:
    with checking() as process:
        yield process


@pytest.mark.parametrize("shape", kv_append.hostile(), ids=lambda s: f"{s.head_dim}-k{s.k_bits}-v{s.v_bits}")
@pytest.mark.parametrize("tile", [0, 3])
def test_every_byte_is_that_of_the_reference(interpreter: Checking, shape: kv_append.Shape, tile: int) -> None:
    variant = kv_append.variants(shape)[tile]
    found = interpreter.run("kv_append", asdict(shape), asdict(variant), "bfloat16" if tile else "float16")
    assert not found["wrong_bits"]


@pytest.mark.parametrize("shape", packing.hostile()[::4], ids=lambda s: f"{s.rows}x{s.dim}-{s.bits}")
def test_packing_loses_nothing_in_kernels(interpreter: Checking, shape: packing.Shape) -> None:
    variant = packing.variants(shape)[0]
    assert not interpreter.run("packing", asdict(shape), asdict(variant), "float16")["wrong_bits"]


@settings(max_examples=50, deadline=None)
@given(bits=st.sampled_from((2, 3, 4, 5, 8)), eights=st.integers(1, 12), seed=st.integers(0, 2**31))
def test_bytes_are_those_of_the_runner(bits: int, eights: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (3, 8 * eights), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    packed = packing.reference(codes, bits)
    assert torch.equal(packed, runner.pack(codes, bits))
    assert torch.equal(packing.expanded(packed, bits), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("dim", [64, 80, 128])
def test_codes_are_those_of_the_runner(bits: int, dim: int) -> None:
    """The reference that kernels are held to, against the runtime that plans are verified on."""
    generator = torch.Generator().manual_seed(dim)
    mean, scale = torch.randn(1, 1, dim, generator=generator) * 0.2, torch.rand(1, 1, dim, generator=generator) + 0.5
    code = runner.Code(bits, dim, mean, scale)
    x = torch.randn(1, 1, 40, dim, generator=generator) * 3
    x[0, 0, 7] = mean[0, 0]  # nothing is left of it
    wanted_codes, wanted_norms = code.encode(x)
    codes, norms = kv_append.encoded(code.rotated(x), bits)
    assert torch.equal(packing.reference(codes, bits), wanted_codes)
    assert torch.equal(norms, wanted_norms[..., 0])
    decoded = rotated.book(bits)[codes.long()] * norms.double()[..., None]
    torch.testing.assert_close(decoded, code.decode((wanted_codes, wanted_norms)).double(), rtol=1e-6, atol=0)
    torch.testing.assert_close(rotated.rotation(dim).float(), code.rotation)


def test_rows_take_the_bytes_that_plans_count() -> None:
    for bits in (2, 3, 4, 8):
        zero, one = torch.zeros(1, 1, 96), torch.ones(1, 1, 96)
        stored = runner.Code(bits, 96, zero, one).encode(torch.ones(1, 1, 1, 96))
        assert rotated.row_bytes(bits, 96) == sum(part.nbytes for part in stored)
        parts = rotated.empty(bits, 1, 96, torch.device("cpu"), torch.float16)
        assert rotated.row_bytes(bits, 96) == sum(part.nbytes for part in parts)
        assert rotated.strides_of(bits, 96)[0] == parts[0].stride(0)


def test_vectors_that_kernels_cannot_read_are_refused() -> None:
    shape = kv_append.hostile()[0]
    k, v, k_store, v_store, regions, table = kv_append.inputs(shape, torch.float32, seed=0)
    seen, counts = torch.tensor(shape.seen), torch.tensor(shape.counts)
    apart = torch.empty(*k.shape[:2], k.shape[3], 2).transpose(2, 3)
    with pytest.raises(ValueError, match="side by side"):
        kv_append.kv_append(apart, v, k_store, v_store, regions, seen, counts, True, None, table)
    with pytest.raises(ValueError, match="give zeros"):
        kv_append.kv_append(k, v, v_store, v_store, regions, seen, counts, True, None, table)
