"""The documents that a model is calibrated on, cut from the user's text once for all who need them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.compile.exam import read
from planner.request import Request

if TYPE_CHECKING:
    from profiles.documents import Tokenizer

PASSKEYS_TOLD = 3
"""Facts hidden in each calibration document and asked for again."""

WEIGHT_DOCUMENTS, WEIGHT_DOCUMENT_TOKENS = 4, 512
"""What matrices are priced on, as far as the text suffices: what they lose hangs little on the length of a context, and
more on what is said."""

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Texts:
    """Documents that share no token of the text.

    priced      for keys, values and spans, at every context length of the workload, with facts to recall
    short       for matrices, all of one length
    held_out    for whole settings, of the longest context
    """

    where: str
    priced: tuple[Tokens, ...]
    short: tuple[Tokens, ...]
    held_out: Tokens

    @property
    def every(self) -> tuple[Tokens, ...]:
        return (*self.priced, *self.short, self.held_out)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a short text makes worse."""
        if len(self.short) == WEIGHT_DOCUMENTS:
            return ()
        return (
            f"{self.where}: has room for {len(self.short)} of the {WEIGHT_DOCUMENTS} documents that matrices are priced"
            " on; a longer text makes their prices steadier",
        )


def texts(request: Request, tokenizer: "Tokenizer", seed: int) -> Texts:
    """The documents of a request; InputError where its text has too few tokens."""
    from profiles import documents

    lengths = [n for n in request.workload.context_tokens for _ in range(request.calibration.documents)]
    content, where = read(request.calibration.text, documents.CALIBRATION_TEXT)
    longest = request.workload.longest_tokens
    short = min(WEIGHT_DOCUMENT_TOKENS, longest)
    room = documents.length(tokenizer, content) - sum(lengths) - longest
    count = min(max(room // short, 1), WEIGHT_DOCUMENTS)
    found = documents.slices(tokenizer, content, [*lengths, *[short] * count, longest], where)
    told = tuple(
        documents.with_passkeys(tokenizer, document, PASSKEYS_TOLD, seed + i)
        for i, document in enumerate(found[: len(lengths)])
    )
    return Texts(where, told, found[len(lengths) : -1], found[-1])
