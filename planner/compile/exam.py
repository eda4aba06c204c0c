"""What plans are verified on: documents of a text at the longest context, and numbers hidden at several depths."""

from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from planner.errors import InputError
from planner.goal import Workload
from planner.request import Request, Verification
from planner.verify import ANSWER_TOKENS, Exam, Passkey

if TYPE_CHECKING:
    from profiles.documents import Recall, Tokenizer

PASSKEY_SEED, PAIR_SEED = 1000, 2000
"""Far from the seeds of what models are calibrated on, which count from the user's; each depth takes the next one."""


PASSAGE_CHARACTERS = 200
"""Of a text that is in another, however its lines are broken: so many are no chance."""


def exam(
    tokenizer: "Tokenizer", workload: Workload, told: Verification, seen: Collection[str] = (), learnt: str = ""
) -> Exam:
    """The documents and the hidden numbers; InputError where a document is among the `seen` hashes, or shares a passage
    with the text that was `learnt` from."""
    from profiles import documents
    from profiles.calibration import document_sha256

    context = workload.longest_tokens
    content, where = read(told.text, documents.VERIFICATION_TEXT)
    found = documents.slices(tokenizer, content, [context] * told.documents, where)
    if any(document_sha256(document) in seen for document in found):
        raise InputError(f"{where}: holds a document that the model was calibrated on; give another text")
    passage = first_shared(tokenizer, found, learnt)
    if passage is not None:
        raise InputError(
            f"{where}: shares the passage {passage[:40]!r}... with what the model is calibrated on; give another text"
            " for verification"
        )

    def asked(prompt: "Callable[..., Recall]", seed: int) -> tuple[Passkey, ...]:
        """One question at each depth, evenly from the start of the prompt to its end."""
        room = context - ANSWER_TOKENS
        found = (prompt(tokenizer, room, (i + 0.5) / told.recall, seed + i) for i in range(told.recall))
        # In a short context the question alone may take more than there is: then nothing is asked.
        return tuple(passkey(tokenizer, recall) for recall in found if len(recall.prompt) <= room)

    passkeys, pairs = asked(documents.passkey_prompt, PASSKEY_SEED), asked(documents.pair_prompt, PAIR_SEED)
    return Exam(found, context // 2, passkeys, workload.prefill_chunk_tokens, pairs)


def shared(document: str, learnt: str) -> str | None:
    """A passage of a document that is also in another text, white space aside; None if there is none.

    A document shorter than a passage is one itself.

    >>> learnt = "".join(f"sentence {i}, " for i in range(100))
    >>> passage = learnt[learnt.index("sentence 30") :][:PASSAGE_CHARACTERS]
    >>> shared("Something else:" + passage.replace(" ", "   ") + "!", learnt) == passage
    True
    >>> shared("Something else:" + passage[:-1] + "!", learnt) is None
    True
    >>> shared(passage[:50], learnt) == passage[:50]
    True
    """
    words, known = " ".join(document.split()), " ".join(learnt.split())
    size, half = PASSAGE_CHARACTERS, PASSAGE_CHARACTERS // 2
    if len(words) <= size:
        return words if words and words in known else None
    # A passage of the other text holds one of its marks, wherever it begins.
    marks = {known[at : at + half] for at in range(0, len(known) - half + 1, half)}
    for at in (at for at in range(len(words) - half + 1) if words[at : at + half] in marks):
        for start in range(max(0, at - half), min(at, len(words) - size) + 1):
            if words[start : start + size] in known:
                return words[start : start + size]
    return None


def fresh(asked: Exam, tokenizer: "Tokenizer", request: Request) -> Exam | None:
    """The same questions on as many other documents of the text; None where it has no room for them, or they share a
    passage with the calibration text."""
    from profiles import documents

    learnt, _ = read(request.calibration.text, documents.CALIBRATION_TEXT)
    content, where = read(request.verification.text, documents.VERIFICATION_TEXT)
    found = documents.others(tokenizer, content, asked.documents, where)
    if found is None or first_shared(tokenizer, found, learnt) is not None:
        return None
    return replace(asked, documents=found)


def first_shared(tokenizer: "Tokenizer", found: Sequence[Sequence[int]], learnt: str) -> str | None:
    """A passage of some document that is also in another text, if there is one."""
    passages = (shared(str(tokenizer.decode(list(document))), learnt) for document in found)
    return next((passage for passage in passages if passage is not None), None)


def passkey(tokenizer: "Tokenizer", recall: "Recall") -> Passkey:
    """A prompt whose answer is read out of generated tokens."""

    def found(tokens: Sequence[int]) -> bool:
        return recall.answer in tokenizer.decode(list(tokens))

    return Passkey(recall.prompt, found, recall.question_tokens)


def read(path: Path | None, shipped: str) -> tuple[str, str]:
    """A user's text or the shipped one, and what to call it in a message."""
    from profiles import documents

    return (documents.shipped(shipped), f"the shipped {shipped}") if path is None else (documents.read(path), str(path))
