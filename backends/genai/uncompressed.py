"""An artefact's dense counterpart: its own weights under a cache that keeps every token in float32."""

import json
import shutil
from pathlib import Path

import onnx
from onnx import TensorProto

from backends.genai.layout import CONFIG
from backends.onnxruntime import runner
from planner.artefact import read_plan
from planner.space import Full, KvSite

CODED = ("k_quant_type", "v_quant_type", "kv_cache_bit_width")
RING = ("local_window_size", "sliding_window_cache")
SCALES = 12
"""Where GroupQueryAttention's inputs of scales begin."""


def rewritten(directory: Path, new: Path) -> None:
    """Write the directory anew, its caches uncoded; layers keep every token, but those that were trained with a window.

    The file of constants is linked, not copied, where the file system can.
    """
    config = json.loads((directory / CONFIG).read_text())
    chosen = dict(read_plan(directory).kv)
    rings = config["model"]["decoder"].get("sliding_window", {}).get("layers", [])
    # A ring where the plan keeps all there is: the window that the layer was trained with.
    trained = {layer for layer in rings if isinstance(chosen[KvSite(layer, 0)].span, Full)}
    model = onnx.load(str(directory / runner.GRAPH), load_external_data=False)
    attention = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    for index, node in enumerate(attention):
        dropped = CODED if index in trained else (*CODED, *RING)
        kept = [each for each in node.attribute if each.name not in dropped]
        del node.attribute[:]
        node.attribute.extend(kept)
        del node.input[SCALES:]
    head_dim = config["model"]["decoder"]["head_size"]
    for value in (*model.graph.input, *model.graph.output):
        if value.name.startswith(("past_key_values.", "present.")):
            kind, layer = value.type.tensor_type, int(value.name.split(".")[1])
            kind.elem_type = TensorProto.FLOAT
            kind.shape.dim[3].dim_value = head_dim
            if layer not in trained:
                kind.shape.dim[2].dim_param = "slots"
    if "sliding_window" in config["model"]["decoder"]:
        config["model"]["decoder"]["sliding_window"]["layers"] = sorted(trained)
        if not trained:
            del config["model"]["decoder"]["sliding_window"]
    for path in directory.iterdir():
        if path.is_file() and path.name not in (CONFIG, runner.GRAPH, runner.GRAPH_DATA):
            shutil.copyfile(path, new / path.name)
    try:
        (new / runner.GRAPH_DATA).hardlink_to(directory / runner.GRAPH_DATA)
    except OSError:
        shutil.copyfile(directory / runner.GRAPH_DATA, new / runner.GRAPH_DATA)
    (new / runner.GRAPH).write_bytes(model.SerializeToString())
    (new / CONFIG).write_text(json.dumps(config))
