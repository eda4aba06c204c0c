"""The types that llama.cpp's own presets give every matrix of a dense Llama or Qwen, without an importance matrix.

As src/llama-quant.cpp chooses them: a base type, more bits for some layers' values and down-projections, and where a
block does not divide a row the type that the code falls back to. So what a preset is called and what it stores may
have little in common.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from backends.llamacpp.architecture import gguf_name
from planner.errors import InputError
from planner.formats import GGML, ggml
from planner.mismatch import did_you_mean
from planner.space import GgmlScheme, WeightFormat
from planner.spec import ModelSpec

FALLBACKS: dict[GgmlScheme, GgmlScheme] = {
    "q2_K": "q4_0", "q3_K": "q4_0", "q4_K": "q5_0", "q5_K": "q5_1", "q6_K": "q8_0", "iq4_xs": "iq4_nl",
}  # fmt: skip

BASES: dict[str, GgmlScheme] = {
    "Q2_K": "q2_K", "Q3_K_S": "q3_K", "Q3_K_M": "q3_K", "Q3_K_L": "q3_K", "IQ4_XS": "iq4_xs", "IQ4_NL": "iq4_nl",
    "Q4_0": "q4_0", "Q4_1": "q4_1", "Q4_K_S": "q4_K", "Q4_K_M": "q4_K", "Q5_0": "q5_0", "Q5_1": "q5_1",
    "Q5_K_S": "q5_K", "Q5_K_M": "q5_K", "Q6_K": "q6_K", "Q8_0": "q8_0",
}  # fmt: skip
"""Every preset and its base type."""

OUTPUTS: dict[str, GgmlScheme] = {"Q2_K": "q3_K", "Q3_K_M": "q4_K", "Q3_K_L": "q5_K"}
"""What attention's output matrix is stored in where that is not the base type."""


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a matrix stands: its name in a layer, its layer of how many, and query heads to a KV head."""

    leaf: str
    layer: int
    layers: int
    group: int

    @property
    def first_eighth(self) -> bool:
        return self.layer < self.layers // 8

    @property
    def more_bits(self) -> bool:
        """The first and the last eighth of the layers, and every third between."""
        eighth = self.layers // 8
        return self.first_eighth or self.layer >= 7 * self.layers // 8 or (self.layer - eighth) % 3 == 2


def types(preset: str, spec: ModelSpec) -> Mapping[str, WeightFormat]:
    """The format that a preset gives every matrix, by its name in transformers."""
    if preset not in BASES:
        raise InputError(f"unknown preset {preset!r}{did_you_mean(preset, tuple(BASES))}")
    tied = not any(tensor.name.startswith("lm_head") for tensor in spec.tensors)
    found = {}
    for tensor in spec.tensors:
        leaf = gguf_name(tensor.name).removesuffix(".weight").rpartition(".")[2]
        shape = spec.layers[tensor.layer]
        place = _Place(leaf, tensor.layer, len(spec.layers), shape.group)
        if leaf == "output" or (tied and leaf == "token_embd"):
            wanted = _head(BASES[preset], tensor.cols)
        else:
            wanted = _in_layer(preset, place)
        found[tensor.name] = _fitting(wanted, tensor.cols)
    return found


def _head(base: GgmlScheme, cols: int) -> GgmlScheme:
    if base == "q8_0" or cols % GGML[base][1]:
        return "q8_0"
    return "q6_K"


def _in_layer(preset: str, place: _Place) -> GgmlScheme:
    base = BASES[preset]
    match place.leaf:
        case "attn_v":
            return _values(preset, base, place)
        case "ffn_down":
            return _down(preset, base, place)
        case "attn_output":
            return OUTPUTS.get(preset, base)
        case _:
            return base


def _values(preset: str, base: GgmlScheme, place: _Place) -> GgmlScheme:
    match preset:
        case "Q2_K":
            chosen: GgmlScheme = "q4_K" if place.group >= 4 else "q3_K"
        case "Q3_K_M":
            chosen = "q5_K" if place.layer < 2 else "q4_K"
        case "Q3_K_L":
            chosen = "q5_K"
        case "IQ4_NL" | "IQ4_XS" if place.group >= 4:
            chosen = "q5_K"
        case "Q4_K_M" | "Q5_K_M" if place.more_bits:
            chosen = "q6_K"
        case "Q4_K_S" if place.layer < 4:
            chosen = "q5_K"
        case _:
            chosen = base
    seventy = place.layers == 80 and place.group > 1  # Llama 70B, whose values are few
    return "q5_K" if seventy and chosen in ("q3_K", "q4_K") else chosen


def _down(preset: str, base: GgmlScheme, place: _Place) -> GgmlScheme:
    match preset:
        case "Q2_K":
            return "q3_K"
        case "Q3_K_M":
            return "q5_K" if place.layer < place.layers // 16 else "q4_K"
        case "Q3_K_L":
            return "q5_K"
        case "Q4_K_M" | "Q5_K_M" if place.more_bits:
            return "q6_K"
        case "IQ4_NL" | "IQ4_XS" | "Q4_K_S" if place.first_eighth:
            return "q5_K"
        case _:
            return base


def _fitting(wanted: GgmlScheme, cols: int) -> WeightFormat:
    """The type, or what is taken where its blocks do not divide a row."""
    if cols % GGML[wanted][1] == 0:
        return ggml(wanted)
    other = FALLBACKS.get(wanted, wanted)
    return ggml(other) if cols % GGML[other][1] == 0 else WeightFormat(16)
