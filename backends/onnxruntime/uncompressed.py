"""An artefact's dense counterpart: its own weights under a cache that keeps every token in float32."""

from pathlib import Path
from typing import cast

import onnx
from onnx import TensorProto

from backends.onnxruntime import runner
from backends.onnxruntime.executor import OnnxRuntimeSession, load
from backends.onnxruntime.sessions import with_data

QUANTISED = ("k_quant_type", "v_quant_type", "kv_cache_bit_width")

FILLED, SLOTS, BIAS, SCALES = 5, 6, 10, slice(12, 14)
"""Where GroupQueryAttention has these inputs."""


def uncompressed(directory: Path) -> OnnxRuntimeSession:
    """The artefact's graph, every attention node reading a float32 cache that nothing leaves but what the layer's own
    training window hides."""
    artefact = load(directory).model
    model = onnx.load(str(directory / runner.GRAPH), load_external_data=False)
    reaches = [group["reach"] for group in artefact.layout["groups"]]
    groups = {reach: number for number, reach in enumerate(dict.fromkeys(reaches))}
    of_group = {f"filled.{old}": (groups[reach], reach is not None) for old, reach in enumerate(reaches)}
    for node in model.graph.node:
        if node.op_type == "GroupQueryAttention":
            number, windowed = of_group[node.input[FILLED]]
            _keep_everything(node, number, windowed)
    _redeclare(model, groups)
    layout: runner.KvLayout = {
        **artefact.layout,
        "groups": [{"sinks": 0, "alpha": None, "beta": 0.0, "reach": reach} for reach in groups],
        "layers": [
            [{**each, "group": groups[reaches[each["group"]]], "bits": 32} for each in layer]
            for layer in artefact.layout["layers"]
        ],
    }
    data = (directory / runner.GRAPH_DATA).read_bytes()
    session = with_data(model, data)
    return OnnxRuntimeSession(runner.PlannedModel(session, layout, artefact.weight_bytes, 0))


def _keep_everything(node: onnx.NodeProto, group: int, windowed: bool) -> None:
    inputs = list(node.input)
    inputs[FILLED], inputs[SLOTS] = f"filled.{group}", f"slots.{group}"
    inputs[BIAS] = f"bias.{group}" if windowed else ""
    inputs[SCALES] = ["", ""]
    del node.input[:]
    node.input.extend(inputs)
    kept = [each for each in node.attribute if each.name not in QUANTISED]
    del node.attribute[:]
    node.attribute.extend(kept)


def _redeclare(model: onnx.ModelProto, groups: dict[int | None, int]) -> None:
    """The graph's inputs and outputs as its nodes now read and write them."""
    graph = model.graph
    plain = [v for v in graph.input if v.name.partition(".")[0] not in ("filled", "slots", "bias")]
    caches = [v for v in (*plain, *graph.output) if v.name.startswith(("past.", "present."))]
    for value in caches:
        kind = value.type.tensor_type
        if kind.elem_type == TensorProto.UINT8:  # two codes a byte
            width = kind.shape.dim[3]
            width.dim_value = 2 * cast(int, width.dim_value)
        kind.elem_type = TensorProto.FLOAT
    make = onnx.helper.make_tensor_value_info
    for reach, number in groups.items():
        plain += [
            make(f"filled.{number}", TensorProto.INT32, ["batch"]),
            make(f"slots.{number}", TensorProto.INT32, []),
        ]
        if reach is not None:
            plain.append(make(f"bias.{number}", TensorProto.FLOAT, ["batch", 1, "tokens", f"seen.{number}"]))
    del graph.input[:]
    graph.input.extend(plain)
