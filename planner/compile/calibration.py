"""The documents that a model is calibrated on, cut from the user's text once for all who need them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.compile.exam import read
from planner.request import Request

if TYPE_CHECKING:
    from profiles.documents import Tokenizer

WEIGHT_DOCUMENTS, WEIGHT_DOCUMENT_TOKENS = 4, 512
"""What matrices are priced on, as far as the text suffices: what they lose hangs little on the length of a context, and
more on what is said."""

PRICED_TOKENS, MOST_TIMES = 2048, 4
"""`calibration.documents` is for documents of at least so many tokens; of shorter ones there are as many times more, up
to four, for what matters is how much is said."""

HELD_OUT_TOKENS, MOST_HELD_OUT = 6144, 4
"""Of the documents that whole settings are run on, as far as the text suffices, and how many they are at most. One
document may lose half of what others do (SmolLM2-135M, 2,048 tokens)."""

Tokens = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Texts:
    """Documents that share no token of the text.

    priced      for keys, values and spans, at every context length of the workload, with facts and copies to recall
    short       for matrices, all of one length
    held_out    for whole settings, each of the longest context
    """

    where: str
    priced: tuple[Tokens, ...]
    short: tuple[Tokens, ...]
    held_out: tuple[Tokens, ...]

    @property
    def every(self) -> tuple[Tokens, ...]:
        return (*self.priced, *self.short, *self.held_out)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a short text makes worse."""
        longest = len(self.held_out[0])
        return tuple(
            f"{self.where}: has room for {found} of the {wanted} documents that {what}"
            for found, wanted, what in (
                (
                    len(self.short),
                    WEIGHT_DOCUMENTS,
                    "matrices are priced on; a longer text makes their prices steadier",
                ),
                (len(self.held_out), held_out(longest), "sums of prices are corrected by; a longer text steadies that"),
            )
            if found < wanted
        )


def times(tokens: int) -> int:
    """How many documents of a length are priced for each that is asked for.

    >>> times(8192), times(2048), times(1024), times(64)
    (1, 1, 2, 4)
    """
    return min(max(PRICED_TOKENS // tokens, 1), MOST_TIMES)


def held_out(tokens: int) -> int:
    """How many documents of a length whole settings are run on.

    >>> held_out(8192), held_out(2048), held_out(1024)
    (1, 3, 4)
    """
    return min(max(HELD_OUT_TOKENS // tokens, 1), MOST_HELD_OUT)


def texts(request: Request, tokenizer: "Tokenizer", seed: int) -> Texts:
    """The documents of a request; InputError where its text has too few tokens."""
    from profiles import documents
    from profiles.probes import with_probes

    asked = request.calibration.documents
    lengths = [n for n in request.workload.context_tokens for _ in range(asked * times(n))]
    content, where = read(request.calibration.text, documents.CALIBRATION_TEXT)
    longest = request.workload.longest_tokens
    short = min(WEIGHT_DOCUMENT_TOKENS, longest)
    room = documents.length(tokenizer, content) - sum(lengths) - longest
    shorts = min(max(room // short, 1), WEIGHT_DOCUMENTS)
    whole = min(1 + max(room - shorts * short, 0) // longest, held_out(longest))
    found = documents.slices(tokenizer, content, [*lengths, *[short] * shorts, *[longest] * whole], where)
    told = tuple(with_probes(tokenizer, document, seed + i) for i, document in enumerate(found[: len(lengths)]))
    return Texts(where, told, found[len(lengths) : len(lengths) + shorts], found[len(lengths) + shorts :])
