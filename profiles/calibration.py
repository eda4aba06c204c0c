"""The documents that a model is measured on, and how many labels are drawn on each."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Calibration:
    """The documents to measure on: token sequences by context length; weights are priced on short ones."""

    documents: tuple[tuple[int, ...], ...]
    weight_documents: tuple[tuple[int, ...], ...]
    draws: int
    seed: int
    sinks: int

    @property
    def sha256(self) -> tuple[str, ...]:
        return tuple(document_sha256(d) for d in (*self.documents, *self.weight_documents))


def document_sha256(tokens: Sequence[int]) -> str:
    """Identity of a token sequence."""
    return hashlib.sha256(np.asarray(tokens, np.int64).tobytes()).hexdigest()
