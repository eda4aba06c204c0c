"""An exported decoder opens as the model it was exported from; what cannot be found in its graph ends in one line."""

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from transformers import AutoModelForCausalLM, PreTrainedModel

from planner.errors import InputError
from planner.source import Source
from profiles.sources.checkpoint import Checkpoint
from profiles.sources.load import load_model, load_tokenizer
from profiles.sources.open import open_source
from profiles.weights import CheckpointWeights

Change = Callable[[onnx.ModelProto], None]


def nothing(model: onnx.ModelProto) -> None:
    """The export as it is."""


def exported(source: Path, out: Path, how: str = "renamed", change: Change = nothing) -> Path:
    """A model's weights and products as an exporter leaves them in a graph; what lies between does not matter here.

    named     every initializer has its parameter's name
    renamed   products multiply with transposed matrices of no name, as torch.onnx folds them
    behind    products multiply with a float16 matrix behind a cast and a transposition
    wrapped   as named, below the name of a module around the model
    builder   the names of onnxruntime-genai's builder
    """
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    out.mkdir(parents=True, exist_ok=True)
    for name in ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (source / name).is_file():
            shutil.copyfile(source / name, out / name)
    nodes: list[onnx.NodeProto] = []
    held: list[onnx.TensorProto] = []
    for name, parameter in model.named_parameters():
        values, module = parameter.detach().numpy(), name.rpartition(".")[0]
        product = isinstance(model.get_submodule(module), torch.nn.Linear)
        if how == "wrapped":
            held.append(numpy_helper.from_array(values, f"model.{name}"))
        elif not product or how == "named":
            told = name
            if how == "builder" and name == "model.norm.weight":
                told = f"model.layers.{model.config.num_hidden_layers}.final_norm_layernorm.weight"
            held.append(numpy_helper.from_array(values, told))
        else:
            add_product(module, values, how, nodes, held)
    graph = helper.make_graph(nodes, "decoder", [], [], held)
    proto = helper.make_model(graph)
    change(proto)
    path = out / "model.onnx"
    onnx.save(proto, str(path), save_as_external_data=True, location="model.onnx.data", size_threshold=0)
    return path


def add_product(
    module: str,
    values: "np.ndarray[tuple[int, ...], np.dtype[np.float32]]",
    how: str,
    nodes: list[onnx.NodeProto],
    held: list[onnx.TensorProto],
) -> None:
    """One product of a module with its matrix."""
    path = "/" + module.replace(".", "/").replace("layers/", "layers.")
    matrix = f"onnx::MatMul_{len(held)}"
    if how == "behind":
        held.append(numpy_helper.from_array(values.astype(np.float16), f"{module}.half"))
        nodes.append(helper.make_node("Cast", [f"{module}.half"], [f"{module}.cast"], to=TensorProto.FLOAT))
        nodes.append(helper.make_node("Transpose", [f"{module}.cast"], [matrix], perm=[1, 0]))
    else:
        held.append(numpy_helper.from_array(np.ascontiguousarray(values.T), matrix))
    if how == "builder":
        path = path.replace("self_attn", "attn")
    nodes.append(helper.make_node("MatMul", [f"{module}.in", matrix], [f"{module}.out"], name=f"{path}/MatMul"))


def opened(path: Path) -> Checkpoint:
    return open_source(Source(onnx=path.name), path.parent)


def parameters(model: PreTrainedModel) -> Mapping[str, torch.Tensor]:
    return dict(model.named_parameters())


@pytest.mark.parametrize("how", ["named", "renamed", "behind", "wrapped", "builder"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "llama-three"])
def test_the_model_is_the_one_that_was_exported(
    how: str, family: str, tiny: Callable[[str], Path], tmp_path: Path
) -> None:
    source = tiny(family)
    checkpoint = opened(exported(source, tmp_path, how))
    found = parameters(load_model(checkpoint))
    wanted = parameters(AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32))
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        matrix = values.half().float() if how == "behind" and "_proj" in name else values
        close = torch.allclose(found[name], matrix, atol=2e-3 if how == "behind" else 0)
        assert close, name


def test_shapes_identity_and_tokenizer_are_those_of_the_directory(tiny_llama: Path, tmp_path: Path) -> None:
    checkpoint = opened(exported(tiny_llama, tmp_path))
    direct = open_source(Source(huggingface=tiny_llama.name), tiny_llama.parent)
    assert checkpoint.kind == "onnx" and checkpoint.spec.source == "onnx:model.onnx"
    assert checkpoint.spec.layers == direct.spec.layers and checkpoint.spec.tensors == direct.spec.tensors
    assert checkpoint.spec.weights_sha256 not in ("", direct.spec.weights_sha256)
    assert load_tokenizer(checkpoint)("The river").input_ids == load_tokenizer(direct)("The river").input_ids
    again = opened(exported(tiny_llama, tmp_path / "again", change=another))
    assert again.spec.weights_sha256 != checkpoint.spec.weights_sha256
    weights = CheckpointWeights(checkpoint)
    assert weights.dense("model.layers.0.mlp.up_proj.weight").shape == (128, 64)


def another(model: onnx.ModelProto) -> None:
    """Other weights: one number is doubled."""
    tensor = next(each for each in model.graph.initializer if each.name.endswith("norm.weight"))
    values = numpy_helper.to_array(tensor).copy()
    values[0] *= 2
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


def fewer(model: onnx.ModelProto) -> None:
    """A product is missing."""
    node = next(each for each in model.graph.node if "down_proj" in each.name)
    model.graph.node.remove(node)


def quantised(model: onnx.ModelProto) -> None:
    """A product reads codes."""
    node = next(each for each in model.graph.node if "down_proj" in each.name)
    node.op_type, node.domain = "MatMulNBits", "com.microsoft"


def reshaped(model: onnx.ModelProto) -> None:
    """A norm is too short."""
    tensor = next(each for each in model.graph.initializer if each.name.endswith("norm.weight"))
    tensor.CopyFrom(numpy_helper.from_array(np.ones(3, np.float32), tensor.name))


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (fewer, ("has no weights for model.layers.0.mlp.down_proj.weight", "of which no matrices were fused")),
        (quantised, ("down_proj.weight; it is quantised (MatMulNBits): give the float export",)),
        (reshaped, ("norm.weight is [3], and config.json makes",)),
    ],
)
def test_a_graph_that_lacks_something_says_what(
    change: Change, parts: tuple[str, ...], tiny_llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        opened(exported(tiny_llama, tmp_path, change=change))
    for part in parts:
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_damaged_or_elsewhere_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    path = exported(tiny_llama, tmp_path)
    data = tmp_path / "model.onnx.data"
    whole = data.read_bytes()
    data.write_bytes(whole[:-8])
    with pytest.raises(InputError, match=r"model\.onnx\.data: has .* bytes, and model.onnx needs"):
        opened(path)
    data.unlink()
    with pytest.raises(InputError, match=r"its weights lie in model\.onnx\.data, which is not beside it"):
        opened(path)
    model = onnx.load(str(path), load_external_data=False)
    for entry in model.graph.initializer[0].external_data:
        entry.value = "../model.onnx.data" if entry.key == "location" else entry.value
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InputError, match="outside of its directory"):
        opened(path)
    path.write_bytes(b"no model at all")
    with pytest.raises(InputError, match=r"is no ONNX model|holds no weights"):
        opened(path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"has no config\.json beside it"):
        opened(path)


def test_a_config_of_another_model_is_refused(tiny_llama: Path, tmp_path: Path) -> None:
    path = exported(tiny_llama, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))
    with pytest.raises(InputError, match=r"has no weights for model\.layers\.3\."):
        opened(path)
