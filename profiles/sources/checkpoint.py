"""An opened model source: its identity and shapes, and where its weights lie; nothing is loaded yet."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from planner.spec import ModelSpec

Kind = Literal["gguf", "huggingface", "onnx", "config"]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where a GGUF file holds one tensor: its name there, its ggml type, [rows, cols] or [size], and its bytes.

    Where `rotary_heads` is not 0 the file has the two halves of each head's rotation interleaved row by row, as
    llama.cpp wants them, and reading puts them back in Hugging Face order.
    """

    name: str
    ggml_type: str
    shape: tuple[int, ...]
    offset_bytes: int
    size_bytes: int
    rotary_heads: int = 0


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model that was found sound: shapes in `spec`, transformers' config as JSON text in `config`.

    `path` is the GGUF or ONNX file, the directory or the config.json. `stored` maps Hugging Face names to places in a
    GGUF file and is empty for the other kinds. `notes` are for the report: what differs from what a user may expect.
    """

    spec: ModelSpec
    config: str
    path: Path
    kind: Kind
    notes: tuple[str, ...] = ()
    stored: Mapping[str, StoredTensor] = field(default_factory=dict, repr=False, compare=False)
