"""A Hugging Face directory as a checkpoint: config.json, safetensors that are whole, nothing that runs code."""

import json
import re
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from planner.errors import InputError
from profiles.sources.checkpoint import Checkpoint
from profiles.sources.config import config_text, parse_config, read_json
from profiles.sources.digest import sha256_of
from profiles.sources.told import one_line

if TYPE_CHECKING:
    from transformers import PreTrainedModel

CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
MOST_HEADER_BYTES = 100 << 20  # the limit of the safetensors format itself
FLOAT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}

Shapes = dict[str, tuple[str, tuple[int, ...]]]
"""dtype and shape of tensors by name."""


def open_huggingface(path: Path, source: str) -> Checkpoint:
    """The checkpoint in a directory."""
    from profiles.sources.family import model_spec, skeleton

    if not path.is_dir():
        raise InputError(f"{path}: is a file; give the directory that holds {CONFIG} and safetensors")
    where = path / CONFIG
    if not where.is_file():
        raise InputError(f"{path}: has no {CONFIG}; give a Hugging Face model directory")
    config = parse_config(read_json(where), str(where))
    shards = _shards(path)
    tensors: Shapes = {}
    for shard in shards:
        tensors |= read_shapes(shard)
    _check_tensors(path, tensors, skeleton(config, str(where)))
    spec = model_spec(config, str(where), source, sha256_of(shards), licence_of(path))
    return Checkpoint(spec, config_text(config), path, "huggingface")


def _shards(path: Path) -> list[Path]:
    """The weight files, sorted by name."""
    if (path / WEIGHTS).is_file():
        return [path / WEIGHTS]
    if (path / INDEX).is_file():
        names = read_json(path / INDEX).get("weight_map")
        if not isinstance(names, dict) or not names:
            raise InputError(f"{path / INDEX}: weight_map: found no files; fetch it again")
        shards = []
        for name in sorted({str(name) for name in names.values()}):
            if Path(name).name != name or not name.endswith(".safetensors"):
                raise InputError(f"{path / INDEX}: weight_map: found {name!r}; needs safetensors in the same directory")
            if not (path / name).is_file():
                raise InputError(f"{path / INDEX}: weight_map: {name} is not in the directory; fetch it again")
            shards.append(path / name)
        return shards
    pickles = sorted(f.name for f in path.iterdir() if f.suffix in (".bin", ".pt", ".pth", ".ckpt"))
    if pickles:
        raise InputError(
            f"{path}: has its weights only as {pickles[0]}, a pickle, which can run code when it is read; save it as"
            " safetensors where you trust it: AutoModelForCausalLM.from_pretrained(DIR).save_pretrained(OUT)"
        )
    if (path / "adapter_config.json").is_file():
        raise InputError(f"{path}: is an adapter without its model; merge it into the model and save that")
    raise InputError(f"{path}: has neither {WEIGHTS} nor {INDEX}; give a Hugging Face directory with its weights")


def read_shapes(path: Path) -> Shapes:
    """dtype and shape of each tensor of a safetensors file that is exactly as long as its header says."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MOST_HEADER_BYTES, size - 8):
            raise InputError(
                f"{path}: the header's length says {length} bytes, and the file has {size}; it is cut short or no"
                " safetensors file: fetch it again"
            )
        text = file.read(length)
    try:
        header = json.loads(text)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        shapes = {name: (str(e["dtype"]), tuple(int(n) for n in e["shape"])) for name, e in entries.items()}
        spans = sorted((int(e["data_offsets"][0]), int(e["data_offsets"][1]), name) for name, e in entries.items())
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise InputError(f"{path}: the header is damaged ({one_line(error)}); fetch it again") from None
    end = 0
    if odd := sorted(name for name, (dtype, _) in shapes.items() if not (name + dtype).isprintable()):
        raise InputError(f"{path}: a tensor is named {odd[0]!r}, which no name is; the file is damaged: fetch it again")
    for start, stop, name in spans:
        dtype, shape = shapes[name]
        if start != end or stop < start or (dtype in FLOAT_BYTES and stop - start != prod(shape) * FLOAT_BYTES[dtype]):
            raise InputError(
                f"{path}: tensor {name}: bytes {start} to {stop} do not fit {dtype} {list(shape)}; fetch it again"
            )
        end = stop
    if 8 + length + end != size:
        raise InputError(
            f"{path}: the tensors end at byte {8 + length + end}, and the file has {size}; it is cut short or damaged:"
            " fetch it again"
        )
    return shapes


def _check_tensors(path: Path, tensors: Shapes, model: "PreTrainedModel") -> None:
    """Every parameter is there, in its shape and in floating point."""
    prefix = f"{model.base_model_prefix}."
    for name, parameter in model.named_parameters():
        # A checkpoint of the bare decoder has its names without the prefix.
        stored = next((n for n in (name, name.removeprefix(prefix)) if n in tensors), None)
        if stored is None:
            if ".experts." in name or name.endswith(".mlp.gate.weight"):
                continue  # checkpoints hold experts one by one, under names that loading maps
            raise InputError(f"{path}: the safetensors have no {name}, which {CONFIG} asks for; give the whole model")
        dtype, shape = tensors[stored]
        if shape != tuple(parameter.shape):
            raise InputError(
                f"{path}: tensor {stored} is {list(shape)}, and {CONFIG} makes it {list(parameter.shape)}; give the"
                " config and the weights of one model"
            )
        if dtype not in FLOAT_BYTES:
            raise InputError(
                f"{path}: tensor {stored} is {dtype}; needs one of {', '.join(FLOAT_BYTES)}: give the float checkpoint"
            )


def licence_of(path: Path) -> str:
    """The licence that the README's front matter names, or that a LICENSE file begins with, or 'unknown'."""
    readme = path / "README.md"
    if readme.is_file():
        text = _start_of(readme)
        front = re.match(r"---\s*\n(.*?)\n---", text, re.DOTALL)
        named = front and re.search(r"^license:[ \t]*[\"']?([\w.+-]+)", front[1], re.MULTILINE)
        if named:
            return named[1]
    for name in ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE"):
        if (path / name).is_file():
            start = " ".join(_start_of(path / name).split())[:200]
            known = {"apache license": "apache-2.0", "mit license": "mit", "bsd 3-clause": "bsd-3-clause"}
            return next((tag for words, tag in known.items() if words in start.lower()), start[:60] or "unknown")
    return "unknown"


def _start_of(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(1 << 16).decode("utf-8", errors="replace")
