"""A source named in a model.yaml, opened: checked, hashed, its shapes known."""

from pathlib import Path

from planner.errors import InputError
from planner.source import Source
from profiles.sources.checkpoint import Checkpoint
from profiles.sources.config import open_config
from profiles.sources.gguf import open_gguf
from profiles.sources.huggingface import open_huggingface
from profiles.sources.onnx import open_onnx
from profiles.sources.package import open_package


def open_source(source: Source, base: Path) -> Checkpoint:
    """The checkpoint a source names; relative paths are relative to `base`, the directory of the model.yaml."""
    given = source.gguf or source.huggingface or source.onnx or source.config or ""
    path = base / Path(given).expanduser()
    # Names, not paths, go into plans: the same model gives the same plan on another machine.
    label = f"{source.kind}:{path.name or path.resolve().name}"
    try:
        if source.package is not None:
            return open_package(source.package)
        if not path.exists():
            raise InputError(f"source.{source.kind}: {path} does not exist; give a path relative to {base}")
        if source.huggingface is not None:
            return open_huggingface(path, label)
        if path.is_dir():
            raise InputError(f"source.{source.kind}: {path} is a directory; give a file, or name it as `huggingface`")
        if source.onnx is not None:
            return open_onnx(path, label)
        return open_gguf(path, label) if source.gguf is not None else open_config(path, label)
    except OSError as error:
        raise InputError(
            f"source.{source.kind}: {error.filename or path} cannot be read: {error.strerror or error}"
        ) from None
