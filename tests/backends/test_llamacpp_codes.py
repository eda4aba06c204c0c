"""ggml's numbers: blocks of weights, keys and values in blocks, inputs of products, and the types of presets."""

import ctypes
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.llamacpp import codes, presets
from backends.llamacpp.library import library, missing
from planner.errors import InputError
from planner.formats import GGML, GGML_KV, as_ggml, ggml, ggml_kv, weight_bytes
from planner.space import FLOAT16, GgmlScheme, KvFormat, WeightFormat
from planner.spec import LayerSpec, ModelSpec, TensorSpec

needs_ggml = pytest.mark.skipif(bool(missing()), reason=f"llama.cpp is not here: {missing()}")
BY_ITSELF = [pytest.param(name, marks=needs_ggml) for name in codes.BY_GGML]
MATRIX = np.random.default_rng(0).standard_normal((6, 512), np.float32)


@pytest.mark.parametrize("name", [*codes.BY_GGUF, *BY_ITSELF])
def test_a_matrix_takes_the_bytes_of_its_type_and_reads_back_near_itself(name: GgmlScheme) -> None:
    form = ggml(name)
    stored = codes.packed(MATRIX, form)
    assert stored.nbytes == weight_bytes(TensorSpec("w", 0, *MATRIX.shape), form)
    error = np.square(codes.unpacked(stored, form) - MATRIX).mean()
    # A step of the type's codes over about six standard deviations, its square over twelve; bf16 has 8 bits.
    assert error < 3 * (6 / 2 ** min(form.bits, 9)) ** 2 / 12


@needs_ggml
@pytest.mark.parametrize("name", codes.BY_GGUF[1:])
def test_the_gguf_package_rounds_as_ggml_does(name: GgmlScheme) -> None:
    stored = codes.packed(MATRIX, ggml(name))
    by_ggml = np.empty_like(stored)
    numbers = MATRIX.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    library().ggml_quantize_chunk(
        int(codes.ggml_type(ggml(name))), numbers, by_ggml.ctypes.data, 0, *MATRIX.shape, None
    )
    assert (stored == by_ggml).all()


@pytest.mark.parametrize("name", [*codes.BY_GGUF, *BY_ITSELF])
def test_rounding_again_changes_little_more(name: GgmlScheme) -> None:
    once = codes.recoded(MATRIX, ggml(name))
    again = codes.recoded(once, ggml(name))
    assert np.square(again - once).mean() <= np.square(once - MATRIX).mean()


def test_a_row_that_blocks_do_not_divide_is_refused() -> None:
    with pytest.raises(InputError, match="rows of 48 are no multiple of a block of 32"):
        codes.packed(MATRIX[:, :48], ggml("q4_0"))
    with pytest.raises(InputError, match="no ggml type stores 4 bits in scheme 'block'"):
        codes.packed(MATRIX, WeightFormat(4, "block", 32))


@pytest.mark.parametrize("name", GGML)
def test_inputs_are_rounded_by_no_more_than_half_a_step_of_their_block(name: GgmlScheme) -> None:
    form = ggml(name)
    read = codes.input_recoded(MATRIX, form)
    assert read is not None
    blocks = np.abs(MATRIX).reshape(6, -1, form.group).max(-1, keepdims=True)
    step = blocks / (127 if name != "bf16" else 128)
    apart = np.abs(read - MATRIX).reshape(6, -1, form.group)
    assert (apart <= 0.51 * step + 127 * step * 2**-11).all()  # a scale in float16 moves the largest codes


def test_inputs_stay_beside_floats_and_where_no_matrix_can_have_the_format() -> None:
    assert codes.input_recoded(MATRIX, WeightFormat(32)) is None
    assert codes.input_recoded(MATRIX, WeightFormat(16)) is None
    assert codes.input_recoded(MATRIX[:, :64], ggml("q4_K")) is None
    assert (codes.input_recoded(np.zeros((2, 256), np.float32), ggml("q4_K")) == 0).all()


@given(st.sampled_from([2, 64, 128]), st.integers(0, 1000))
@settings(max_examples=20, deadline=None)
def test_turning_twice_is_not_turning(size: int, seed: int) -> None:
    x = np.random.default_rng(seed).standard_normal((3, 128), np.float32)
    turned = codes.hadamard(x, size)
    assert np.allclose(np.square(turned).sum(-1), np.square(x).sum(-1), rtol=1e-4)
    assert np.allclose(codes.hadamard(turned, size), x, atol=1e-5)


@pytest.mark.parametrize("dim", [32, 64, 96, 128])
@pytest.mark.parametrize("name", GGML_KV)
def test_keys_and_values_read_back_near_themselves(name: GgmlScheme, dim: int) -> None:
    x = np.random.default_rng(1).standard_normal((40, dim), np.float32)
    for part in ("k", "v"):
        error = np.square(codes.kv_recoded(part, x, ggml_kv(name)) - x).mean()
        assert error < 3 * (6 / 2 ** GGML[name][0]) ** 2 / 12


def test_floats_are_cached_as_they_are_and_nothing_else_is_known() -> None:
    x = MATRIX[:, :64]
    assert (codes.kv_recoded("k", x, KvFormat(32)) == x).all()
    assert (codes.kv_recoded("v", x, FLOAT16) == x.astype(np.float16)).all()
    with pytest.raises(InputError, match="no KV format has 4 bits in scheme 'rotated'"):
        codes.kv_recoded("k", x, KvFormat(4, "rotated"))
    with pytest.raises(InputError, match="the v of a head: rows of 48"):
        codes.kv_recoded("v", MATRIX[:, :48], ggml_kv("q8_0"))


def test_a_grid_of_a_source_is_the_type_of_its_bytes() -> None:
    def on_grid(bits: int, size: int) -> TensorSpec:
        return TensorSpec("w", 0, 32, 32, native=WeightFormat(bits, "native", 32), native_bytes=32 * size)

    assert [as_ggml(on_grid(4, size)) for size in (18, 20, 19)] == [ggml("q4_0"), ggml("q4_1"), None]
    assert as_ggml(replace(on_grid(8, 34), native=None)) is None


# --- presets ------------------------------------------------------------------------------------


def model(cols: int, layers: int, group: int = 3, head: bool = False) -> ModelSpec:
    names = ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj")
    tensors = [TensorSpec("model.embed_tokens.weight", -1, 64, cols)]
    tensors += [TensorSpec(f"model.layers.{i}.{n}.weight", i, 64, cols) for i in range(layers) for n in names]
    tensors += [TensorSpec("lm_head.weight", -1, 64, cols)] if head else []
    shapes = (LayerSpec(group, 1, 64),) * layers
    return ModelSpec("llama", "", "", cols, 64, 64, shapes, tuple(tensors), 0)


def test_presets_fall_back_where_rows_are_no_multiple_of_256() -> None:
    found = presets.types("Q4_K_M", model(576, 30))
    assert found["model.embed_tokens.weight"] == ggml("q8_0")
    assert found["model.layers.10.self_attn.q_proj.weight"] == ggml("q5_0")
    assert found["model.layers.0.mlp.down_proj.weight"] == ggml("q8_0")
    assert set(presets.types("Q2_K", model(576, 30)).values()) == {ggml("q8_0"), ggml("q4_0")}
    assert set(presets.types("IQ4_XS", model(48, 2)).values()) == {WeightFormat(16)}


def test_presets_give_more_bits_where_llama_cpp_does() -> None:
    found = presets.types("Q4_K_M", model(512, 32, head=True))
    assert found["model.embed_tokens.weight"] == ggml("q4_K") and found["lm_head.weight"] == ggml("q6_K")
    values = [found[f"model.layers.{i}.self_attn.v_proj.weight"] for i in range(32)]
    # The first and the last eighth, and every third between.
    more = {*range(4), *range(28, 32), *range(6, 28, 3)}
    assert [i for i, form in enumerate(values) if form == ggml("q6_K")] == sorted(more)
    assert presets.types("Q2_K", model(512, 4, group=4))["model.layers.1.self_attn.v_proj.weight"] == ggml("q4_K")
    assert presets.types("Q3_K_M", model(512, 32))["model.layers.1.mlp.down_proj.weight"] == ggml("q5_K")


@pytest.mark.parametrize("preset", presets.BASES)
@pytest.mark.parametrize("cols", [512, 576, 48])
def test_every_matrix_can_take_what_a_preset_gives_it(preset: str, cols: int) -> None:
    spec = model(cols, 16)
    for form in presets.types(preset, spec).values():
        # llama-quantize itself gives a tied embedding q8_0 before it asks whether the blocks fit, and then float16.
        assert form.scheme == "float" or cols % form.group == 0


def test_an_unknown_preset_is_refused() -> None:
    with pytest.raises(InputError, match=r"unknown preset 'Q4_K_L'; did you mean 'Q4_K_(S|M)'"):
        presets.types("Q4_K_L", model(512, 2))
