"""Bytes of the storage formats: what a token of one head, and a matrix, take in each.

Several KV schemes exist. `float` is the number itself. `rotated` is a code per token and head: the vector is scaled per
channel by static factors, rotated by a Hadamard matrix, divided by its norm (one float16) and rounded to a `bits`-bit
Lloyd-Max codebook of the normal distribution (QuaRot, https://arxiv.org/abs/2404.00456; TurboQuant,
https://arxiv.org/abs/2504.19874). `static` rounds each channel to integers by a static factor and stores nothing per
token. `fp8` is e4m3, and `u8` an integer with a scale and a zero point for each token in float32. Any other scheme is
ggml's block type of that name, in blocks along a token's head. No group spans tokens, so evicting one frees its bytes
at once and nothing waits unquantised for a group to fill.
"""

from dataclasses import replace

from planner.errors import InputError
from planner.space import Full, GgmlScheme, KvChoice, KvFormat, WeightFormat
from planner.spec import LayerSpec, TensorSpec

ROTATED_BITS = (2, 3, 4, 8)
GROUPED_BITS = (2, 3, 4, 8)
STATIC_BITS = (4, 8)
BLOCK_BITS = (2, 4, 8)
INTEGER_GROUPS = (32, 64, 128)
FP8, FP8_ROWS = KvFormat(8, "fp8"), WeightFormat(8, "fp8")
U8 = KvFormat(8, "u8")
NORM_BYTES = 2
SCALE_BYTES = 2
FLOAT_SCALE_BYTES = 4
SHAPE_BYTES = 16


GGML: dict[GgmlScheme, tuple[int, int, int]] = {
    "bf16": (16, 1, 2),
    "q8_0": (8, 32, 34),
    "q6_K": (6, 256, 210),
    "q5_1": (5, 32, 24),
    "q5_0": (5, 32, 22),
    "q5_K": (5, 256, 176),
    "q4_1": (4, 32, 20),
    "q4_0": (4, 32, 18),
    "iq4_nl": (4, 32, 18),
    "q4_K": (4, 256, 144),
    "iq4_xs": (4, 256, 136),
    "q3_K": (3, 256, 110),
    "q2_K": (2, 256, 84),
}
"""ggml's types: bits of a code, numbers of a block, bytes of a block with its scales (ggml/src/ggml-common.h)."""

GGML_KV: tuple[GgmlScheme, ...] = ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0")
"""Those in which llama.cpp caches keys and values, all in blocks of `KV_BLOCK`."""

KV_BLOCK = 32


def ggml(name: GgmlScheme) -> WeightFormat:
    """The weight format of a ggml type."""
    bits, group, _ = GGML[name]
    return WeightFormat(bits, name, group)


def ggml_kv(name: GgmlScheme) -> KvFormat:
    """The KV format of a ggml type."""
    return KvFormat(GGML[name][0], name)


def as_ggml(tensor: TensorSpec) -> WeightFormat | None:
    """The ggml type whose grid the source keeps a matrix on.

    >>> as_ggml(TensorSpec("w", 0, 64, 64, native=WeightFormat(4, "native", 32), native_bytes=2560))
    WeightFormat(bits=4, scheme='q4_1', group=32)
    """
    native = tensor.native
    if native is None:
        return None
    alike = (ggml(name) for name in GGML_KV if GGML[name][:2] == (native.bits, native.group))
    return next((form for form in alike if weight_bytes(tensor, form) == tensor.native_bytes), None)


def rotated(bits: int) -> KvFormat:
    """The `rotated` format of that width."""
    return KvFormat(bits, "rotated")


def static(bits: int) -> KvFormat:
    """The `static` format of that width."""
    return KvFormat(bits, "static")


def block(bits: int, group: int = 32) -> WeightFormat:
    """The `block` weight format of that width."""
    return WeightFormat(bits, "block", group)


def integers(bits: int, group: int) -> WeightFormat:
    """The `ct` weight format of that width: a scale for each group of a row, or where `group` is 0 for each row."""
    return WeightFormat(bits, "ct", group)


def exact(tensor: TensorSpec) -> WeightFormat | None:
    """The `exact` format of a matrix that its source keeps on a grid: its codes at the next width there is.

    >>> on_grid = TensorSpec("w", 0, 64, 64, native=WeightFormat(5, "native", 32), native_bytes=2816)
    >>> exact(on_grid), exact(TensorSpec("w", 0, 64, 64))
    (WeightFormat(bits=8, scheme='exact', group=32), None)
    """
    native = tensor.native
    bits = None if native is None else next((b for b in BLOCK_BITS if native.bits <= b), None)
    return None if native is None or bits is None else WeightFormat(bits, "exact", native.group)


def unrounded(tensor: TensorSpec) -> WeightFormat | None:
    """The `unrounded` format of a matrix that its source keeps on a grid.

    >>> unrounded(TensorSpec("w", 0, 64, 64, native=WeightFormat(4, "native", 32), native_bytes=2560))
    WeightFormat(bits=4, scheme='unrounded', group=32)
    """
    form = exact(tensor)
    return None if form is None else replace(form, scheme="unrounded")


def grouped(bits: int, group: int = 32) -> WeightFormat:
    """The `grouped` weight format of that width."""
    return WeightFormat(bits, "grouped", group)


def token_bytes(form: KvFormat, head_dim: int) -> int:
    """Bytes of one token's key, or value, of one head.

    >>> token_bytes(KvFormat(16), 64), token_bytes(rotated(4), 64), token_bytes(rotated(3), 64)
    (128, 34, 26)
    >>> token_bytes(ggml_kv("q8_0"), 64), token_bytes(ggml_kv("q4_1"), 64)
    (68, 40)
    """
    if form.scheme == "float" and form.bits in (16, 32):
        return head_dim * int(form.bits) // 8
    if form.scheme == "rotated" and form.bits in ROTATED_BITS:
        return head_dim * int(form.bits) // 8 + NORM_BYTES
    if form == FP8 or (form.scheme == "static" and form.bits in STATIC_BITS):
        return head_dim * int(form.bits) // 8
    if form == U8:
        return head_dim + 2 * FLOAT_SCALE_BYTES
    for name in GGML_KV:
        if form == ggml_kv(name):
            _, group, each = GGML[name]
            if head_dim % group:
                raise InputError(f"{name} caches blocks of {group}, which do not divide a head of {head_dim}")
            return head_dim // group * each
    raise InputError(f"no KV format has {form.bits:g} bits in scheme {form.scheme!r}")


def sink_bytes(choice: KvChoice, head_dim: int) -> int:
    """Bytes of one protected token, K and V: coded like all others in a `static` format and in ggml's, else a float, of
    32 bits beside a float32 format and of 16 beside any other."""

    def one(form: KvFormat) -> int:
        if coded_alike(form):
            return token_bytes(form, head_dim)
        return head_dim * (4 if form == KvFormat(32) else 2)

    return one(choice.k) + one(choice.v)


def coded_alike(form: KvFormat) -> bool:
    """Whether protected tokens are coded like all others."""
    return form.scheme == "static" or form.scheme in GGML_KV


def slots(choice: KvChoice, layer: LayerSpec, context_tokens: int) -> tuple[int, int]:
    """(protected, coded) slots that one head's cache allocates for a context.

    >>> from dataclasses import replace
    >>> from planner.space import Window
    >>> plain = LayerSpec(q_heads=2, kv_heads=1, head_dim=64)
    >>> full = KvChoice(Full(), rotated(4), rotated(4), sinks=4, tier=(("dram", 1.0),))
    >>> slots(full, plain, 100), slots(replace(full, span=Window(16)), plain, 100)
    ((4, 96), (4, 16))

    A layer trained with a sliding window needs no more than that window, and its sinks leave it with the rest:

    >>> slots(full, replace(plain, window=32), 100)
    (0, 32)
    """
    reach = context_tokens if layer.window is None else min(context_tokens, layer.window)
    sinks = min(choice.sinks, reach) if layer.window is None else 0
    if isinstance(choice.span, Full):
        return sinks, reach - sinks
    return sinks, min(choice.span.tokens(context_tokens), reach - sinks)


def head_bytes(choice: KvChoice, layer: LayerSpec, context_tokens: int) -> int:
    """Bytes one head's cache allocates for one sequence of this length, protected slots included."""
    sinks, coded = slots(choice, layer, context_tokens)
    each = token_bytes(choice.k, layer.head_dim) + token_bytes(choice.v, layer.head_dim)
    return coded * each + sinks * sink_bytes(choice, layer.head_dim)


def static_bytes(choice: KvChoice, layer: LayerSpec) -> int:
    """Bytes of one head's static factors, shared by all sequences: for `rotated` a mean and a scale for keys and a
    scale for values in float16, for `static` a scale for each in float32.

    >>> static_bytes(KvChoice(Full(), rotated(4), KvFormat(16), 4, (("dram", 1.0),)), LayerSpec(1, 1, 64))
    256
    """
    halves = 2 * (choice.k.scheme == "rotated") + (choice.v.scheme == "rotated")
    floats = (choice.k.scheme == "static") + (choice.v.scheme == "static")
    return layer.head_dim * (halves * SCALE_BYTES + floats * FLOAT_SCALE_BYTES)


def weight_bytes(tensor: TensorSpec, form: WeightFormat) -> int:
    """Bytes of a matrix in a format: codes, and what a format keeps for each group of a row.

    >>> q4_1 = TensorSpec("w", 0, 64, 64, native=WeightFormat(4, "native", 32), native_bytes=2560)
    >>> [weight_bytes(q4_1, form) for form in (WeightFormat(4, "native", 32), WeightFormat(4, "exact", 32), block(4))]
    [2560, 3072, 2560]
    >>> weight_bytes(q4_1, ggml("q4_1")), weight_bytes(TensorSpec("w", 0, 1, 256), ggml("q6_K"))
    (2560, 210)

    Four-bit integers of compressed-tensors have their shape beside them, eight-bit ones a float32 scale for each row:

    >>> weight_bytes(q4_1, integers(4, 32)), weight_bytes(q4_1, integers(8, 0))
    (2320, 4352)
    """
    if form.scheme == "native":
        return tensor.native_bytes
    codes = tensor.elements * int(form.bits) // 8
    if form.scheme == "float":
        return codes
    if form.scheme in ("ct", "fp8") and form.group == 0:
        return codes + tensor.rows * FLOAT_SCALE_BYTES
    groups = tensor.elements // form.group
    if form.scheme == "ct":
        return codes + groups * SCALE_BYTES + SHAPE_BYTES
    if form.scheme in GGML:
        return groups * GGML[form.scheme][2]
    if form.scheme == "grouped":
        return codes + groups * 2 * SCALE_BYTES
    floats = 2 if form.as_source and has_minimum(tensor) else 1
    return codes + groups * floats * FLOAT_SCALE_BYTES


def has_minimum(tensor: TensorSpec) -> bool:
    """Whether the source keeps a minimum beside the scale of a block."""
    if tensor.native is None:
        return False
    beside = tensor.native_bytes - tensor.elements * int(tensor.native.bits) // 8
    return beside > tensor.elements // tensor.native.group * SCALE_BYTES
