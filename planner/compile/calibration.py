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

PRICED_TOKENS, MOST_FOR_EACH = 2048, 4
"""`calibration.documents` is for documents of at least so many tokens; of shorter ones there are as many times more, up
to four, as far as the text suffices: what matters is how much is said."""

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
    wanted      how many documents a longer text would price caches on
    across      whether documents go across the text's works
    """

    where: str
    priced: tuple[Tokens, ...]
    short: tuple[Tokens, ...]
    held_out: tuple[Tokens, ...]
    wanted: int
    across: bool

    @property
    def every(self) -> tuple[Tokens, ...]:
        return (*self.priced, *self.short, *self.held_out)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a short text makes worse."""
        longest, steadier = max(map(len, self.priced)), "priced on; a longer text makes their prices steadier"
        counts = (
            (len(self.priced), self.wanted, f"caches are {steadier}"),
            (len(self.short), WEIGHT_DOCUMENTS, f"matrices are {steadier}"),
            (
                len(self.held_out),
                most_held_out(longest),
                "sums of prices are corrected by; a longer text steadies that",
            ),
        )
        few = tuple(
            f"{self.where}: has room for {found} of the {wanted} documents that {what}"
            for found, wanted, what in counts
            if found < wanted
        )
        if not self.across:
            return few
        return (
            *few,
            f"{self.where}: its works, between form feeds, are too short for documents of {longest} tokens, which"
            " are cut across them; far tokens then look less useful than they are: give longer works",
        )


def documents_for_each(tokens: int) -> int:
    """How many documents of a length are priced for each that is asked for, as far as the text suffices.

    >>> documents_for_each(8192), documents_for_each(2048), documents_for_each(1024), documents_for_each(64)
    (1, 1, 2, 4)
    """
    return min(max(PRICED_TOKENS // tokens, 1), MOST_FOR_EACH)


def most_held_out(tokens: int) -> int:
    """How many documents of a length whole settings are run on, as far as the text suffices.

    >>> most_held_out(8192), most_held_out(2048), most_held_out(1024)
    (1, 3, 4)
    """
    return min(max(HELD_OUT_TOKENS // tokens, 1), MOST_HELD_OUT)


def texts(request: Request, tokenizer: "Tokenizer", seed: int) -> Texts:
    """The documents of a request; InputError where its text has too few tokens for what is asked, a document for
    matrices and one for whole settings."""
    from profiles import documents
    from profiles.probes import with_probes

    asked, contexts = request.calibration.documents, request.workload.context_tokens
    longest = request.workload.longest_tokens
    content, where = read(request.calibration.text, documents.CALIBRATION_TEXT)
    short = min(WEIGHT_DOCUMENT_TOKENS, longest)
    left = documents.length(tokenizer, content) - asked * sum(contexts) - short - longest

    def more(tokens: int, most: int) -> int:
        """How many documents there is room left for, which they take."""
        nonlocal left
        count = min(max(left, 0) // tokens, most)
        left -= count * tokens
        return count

    counts = [asked + more(n, asked * (documents_for_each(n) - 1)) for n in contexts]
    shorts, whole = 1 + more(short, WEIGHT_DOCUMENTS - 1), 1 + more(longest, most_held_out(longest) - 1)
    lengths = [n for n, count in zip(contexts, counts, strict=True) for _ in range(count)]
    found = documents.cut(tokenizer, content, [*lengths, *[short] * shorts, *[longest] * whole], where)
    priced = found.documents[: len(lengths)]
    return Texts(
        where,
        tuple(with_probes(tokenizer, document, seed + i) for i, document in enumerate(priced)),
        found.documents[len(lengths) : len(lengths) + shorts],
        found.documents[len(lengths) + shorts :],
        asked * sum(documents_for_each(n) for n in contexts),
        found.across,
    )
