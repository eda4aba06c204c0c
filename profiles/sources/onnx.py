"""A decoder that was exported to ONNX as a checkpoint: the config beside it, its weights found again in the graph.

Exporters keep the names of norms and embeddings, and most rename or transpose what a product multiplies with; there the
node still has the path of its module. A matrix is found by its own name, else through the product of its module, behind
casts and transpositions. What a graph holds quantised or fused is refused: the float export has it.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError
from profiles.sources.checkpoint import Checkpoint
from profiles.sources.config import config_text, parse_config, read_json
from profiles.sources.digest import sha256_of
from profiles.sources.huggingface import CONFIG, licence_of
from profiles.sources.told import one_line

if TYPE_CHECKING:
    import onnx
    from transformers import PreTrainedModel

PRODUCTS = ("MatMul", "Gemm", "FusedMatMul")
PASSED = ("Identity", "Cast", "Transpose")
QUANTISED = ("MatMulNBits", "DequantizeLinear", "MatMulInteger", "GatherBlockQuantized")
FLOAT_TYPES = {1: "FLOAT", 10: "FLOAT16", 11: "DOUBLE", 16: "BFLOAT16"}

FINAL_NORM = re.compile(r"(?:model\.)*layers\.\d+\.final_norm_layernorm\.weight")
"""What onnxruntime-genai's builder calls the last norm."""


@dataclass(frozen=True, slots=True)
class Place:
    """The initializer that holds a parameter, and whether it lies transposed there."""

    initializer: str
    transposed: bool


def open_onnx(path: Path, source: str) -> Checkpoint:
    """The checkpoint in an ONNX file; config.json and the tokenizer lie beside it."""
    from profiles.sources.family import model_spec, skeleton

    where = path.parent / CONFIG
    if not where.is_file():
        raise InputError(f"{path}: has no {CONFIG} beside it, which tells the model's family and shapes; put it there")
    config = parse_config(read_json(where), str(where))
    graph = read_graph(path)
    places(graph, skeleton(config, str(where)), path)
    files = (path, *outside(graph, path))
    spec = model_spec(config, str(where), source, sha256_of(files), licence_of(path.parent))
    return Checkpoint(spec, config_text(config), path, "onnx")


def read_graph(path: Path) -> "onnx.GraphProto":
    """The graph of a file, its weights left where they lie; InputError where it is none."""
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except (DecodeError, ValueError) as error:
        raise InputError(f"{path}: is no ONNX model: {one_line(error)}; give an exported decoder") from None
    if not graph.initializer:
        raise InputError(f"{path}: its graph holds no weights; give an exported decoder")
    outside(graph, path)
    return graph


def outside(graph: "onnx.GraphProto", path: Path) -> tuple[Path, ...]:
    """The files beside a graph that hold its weights, each checked to be there and long enough."""
    needed: dict[Path, int] = {}
    for tensor in graph.initializer:
        told = {entry.key: entry.value for entry in tensor.external_data}
        if not told:
            continue
        location = Path(told.get("location", ""))
        if location.is_absolute() or ".." in location.parts or not location.name:
            raise InputError(f"{path}: {one_line(tensor.name)} lies in {str(location)!r}, outside of its directory")
        end = int(told.get("offset", "0")) + int(told.get("length", "0"))
        file = path.parent / location
        needed[file] = max(needed.get(file, 0), end)
    for file, end in needed.items():
        if not file.is_file():
            raise InputError(f"{path}: its weights lie in {file.name}, which is not beside it; fetch it too")
        if file.stat().st_size < end:
            raise InputError(f"{file}: has {file.stat().st_size} bytes, and {path.name} needs {end}; fetch it again")
    return tuple(sorted(needed))


def read_parameters(path: Path, model: "PreTrainedModel") -> dict[str, NDArray[np.float32]]:
    """Every parameter of a model as float32, in the model's own layout."""
    import onnx

    graph = read_graph(path)
    held = {tensor.name: tensor for tensor in graph.initializer}
    found = {}
    for name, place in places(graph, model, path).items():
        values = onnx.numpy_helper.to_array(held[place.initializer], str(path.parent)).astype(np.float32)
        found[name] = np.ascontiguousarray(values.T if place.transposed else values)
    return found


def places(graph: "onnx.GraphProto", model: "PreTrainedModel", path: Path) -> dict[str, Place]:
    """Where every parameter of a model lies in a graph; InputError for the first that is nowhere."""
    from transformers.pytorch_utils import Conv1D

    held = {tensor.name: tensor for tensor in graph.initializer}
    products, names = dict(_products(graph)), dict(_named(held))
    found = {}
    for name, parameter in model.named_parameters():
        module, shape = name.rpartition(".")[0], tuple(parameter.shape)
        stored_by_inputs = isinstance(model.get_submodule(module), Conv1D)
        place = None
        if module in products and name.endswith(".weight") and len(shape) == 2:
            initializer, by_inputs = products[module]
            place = Place(initializer, by_inputs != stored_by_inputs)
        elif name in names:
            dims = tuple(held[names[name]].dims)
            place = Place(names[name], dims != shape and dims == shape[::-1])
        if place is None:
            raise InputError(f"{path}: has no weights for {name}{_why(graph)}")
        tensor = held[place.initializer]
        dims = tuple(tensor.dims)
        if (dims[::-1] if place.transposed else dims) != shape:
            raise InputError(
                f"{path}: {one_line(tensor.name)} is {list(dims)}, and {CONFIG} makes {name} {list(shape)}"
            )
        if tensor.data_type not in FLOAT_TYPES:
            raise InputError(f"{path}: {one_line(tensor.name)} is no float{_why(graph)}")
        found[name] = place
    return found


def _why(graph: "onnx.GraphProto") -> str:
    """What else a graph holds that would explain missing floats."""
    kinds = sorted({node.op_type for node in graph.node} & set(QUANTISED))
    told = f"; it is quantised ({', '.join(kinds)}): give the float export" if kinds else ""
    return told or "; give the export of a whole decoder, of which no matrices were fused"


def _module(path: str) -> str:
    """The module of a node, or of a parameter's name, as transformers names it.

    >>> _module("/model/model/layers.0/self_attn/q_proj/MatMul"), _module("/model/layers.0/attn/q_proj/MatMul")
    ('model.layers.0.self_attn.q_proj', 'model.layers.0.self_attn.q_proj')
    >>> _module("/lm_head/MatMul"), _module("/model/lm_head/MatMul"), _module("/transformer/h.0/attn/c_attn/Gemm")
    ('lm_head', 'lm_head', 'transformer.h.0.attn.c_attn')
    """
    return _whole(".".join(part for part in path.split("/")[:-1] if part))


def _whole(name: str) -> str:
    """A dotted name as transformers has it, whatever an exporter wrapped around the model."""
    for marker in ("layers.", "embed_tokens", "norm.", "rotary_emb"):
        at = name.find(marker)
        if at == 0 or (at > 0 and set(name[:at].split(".")) <= {"model", ""}):
            return f"model.{name[at:]}".replace(".attn.", ".self_attn.")
    return name.removeprefix("model.") if name.startswith("model.lm_head") else name


def _named(held: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """(parameter, initializer) where an exporter kept the name."""
    for name in held:
        if FINAL_NORM.fullmatch(name):
            yield "model.norm.weight", name
        else:
            yield _whole(name), name


def _products(graph: "onnx.GraphProto") -> Iterator[tuple[str, tuple[str, bool]]]:
    """(module, (initializer, whether it lies [inputs, outputs])) of every product with a matrix that is stored."""
    made = {out: node for node in graph.node for out in node.output}
    held = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type not in PRODUCTS or len(node.input) < 2:
            continue
        flipped = any(each.name == "transB" and each.i for each in node.attribute)
        name = node.input[1]
        while name not in held and name in made and made[name].op_type in PASSED:
            flipped ^= made[name].op_type == "Transpose"
            name = made[name].input[0]
        if name in held:
            yield _module(node.name), (name, not flipped)
