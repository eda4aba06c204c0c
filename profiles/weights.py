"""A checkpoint's numbers as backends and pricing ask for them: matrices as [outputs, inputs], read when asked for."""

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from planner.executor import Artifact, NativeBlocks
from profiles.sources.blocks import native_blocks
from profiles.sources.checkpoint import Checkpoint
from profiles.sources.load import load_model, load_tokenizer

LICENCES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "NOTICE", "README.md")


@dataclass
class CheckpointWeights:
    """The weights of one checkpoint, loaded by transformers once they are first needed."""

    checkpoint: Checkpoint

    @property
    def config(self) -> str:
        return self.checkpoint.config

    @cached_property
    def model(self) -> PreTrainedModel:
        """The model in float32."""
        return load_model(self.checkpoint)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self.checkpoint)

    @cached_property
    def _transposed(self) -> frozenset[str]:
        return frozenset(f"{name}.weight" for name, m in self.model.named_modules() if isinstance(m, Conv1D))

    def names(self) -> tuple[str, ...]:
        return tuple(name for name, _ in self.model.named_parameters())

    def dense(self, name: str) -> NDArray[np.float32]:
        values: NDArray[np.float32] = self.model.get_parameter(name).detach().numpy()
        return np.ascontiguousarray(values.T) if self.transposed(name) else values

    def transposed(self, name: str) -> bool:
        return name in self._transposed

    def native(self, name: str) -> NativeBlocks | None:
        blocks = native_blocks(self.checkpoint, name)
        if blocks is None:
            return None
        minimum = blocks.minimum.astype(np.float16) if blocks.symmetric_offset is None else None
        offset = None if blocks.symmetric_offset is None else -blocks.symmetric_offset
        return NativeBlocks(blocks.bits, blocks.codes, blocks.scale, minimum, offset)

    def gguf(self) -> Path | None:
        return self.checkpoint.path if self.checkpoint.kind == "gguf" else None

    def companions(self) -> tuple[Artifact, ...]:
        with tempfile.TemporaryDirectory() as scratch:
            self.tokenizer.save_pretrained(scratch)
            found = [Artifact(p.name, p.read_bytes()) for p in sorted(Path(scratch).iterdir()) if p.is_file()]
        licence = f"The weights are licensed as: {self.checkpoint.spec.licence}\n"
        found.append(Artifact("LICENCE-OF-WEIGHTS.txt", licence.encode()))
        if self.checkpoint.path.is_dir():
            kept = (self.checkpoint.path / name for name in LICENCES)
            found += [Artifact(f"source/{p.name}", p.read_bytes()) for p in kept if p.is_file()]
        return tuple(found)
