"""The documents that a model is measured on, and how many labels are drawn on each."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS_TOKENS = 2048
"""The length of document that is given `Calibration.draws` draws; shorter ones get more, up to four times as many."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The documents to measure on: token sequences by context length; weights are priced on short ones."""

    documents: tuple[tuple[int, ...], ...]
    weight_documents: tuple[tuple[int, ...], ...]
    draws: int
    seed: int
    sinks: int

    def draws_for(self, tokens: int) -> int:
        """Draws on a document of so many tokens: a short one has fewer blocks to average over and costs less.

        >>> asked = Calibration((), (), draws=4, seed=0, sinks=4)
        >>> asked.draws_for(8192), asked.draws_for(2048), asked.draws_for(512)
        (4, 4, 16)
        """
        return self.draws * min(max(DRAWS_TOKENS // tokens, 1), 4)

    @property
    def sha256(self) -> tuple[str, ...]:
        return tuple(document_sha256(d) for d in (*self.documents, *self.weight_documents))


def document_sha256(tokens: Sequence[int]) -> str:
    """Identity of a token sequence."""
    return hashlib.sha256(np.asarray(tokens, np.int64).tobytes()).hexdigest()
