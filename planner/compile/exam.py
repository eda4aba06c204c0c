"""What plans are verified on: documents of a text at the longest context, and passkeys at several depths."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from planner.errors import InputError
from planner.goal import Workload
from planner.verify import ANSWER_TOKENS, Exam, Passkey

if TYPE_CHECKING:
    from profiles.documents import Tokenizer

DEPTHS = (0.1, 0.3, 0.5, 0.7, 0.9)
"""Where in a prompt the passkeys are hidden."""


def exam(tokenizer: "Tokenizer", workload: Workload, text: Path | None, count: int, seen: Collection[str] = ()) -> Exam:
    """`count` documents of a text (the shipped one if None), none of them among the `seen` hashes, and the passkeys."""
    from profiles import documents
    from profiles.model import document_sha256

    context = workload.longest_tokens
    content, where = read(text, documents.VERIFICATION_TEXT)
    found = documents.slices(tokenizer, content, [context] * count, where)
    for document in found:
        if document_sha256(document) in seen:
            raise InputError(f"{where}: holds a document that the model was calibrated on; give another text")

    def passkey(depth: float, seed: int) -> Passkey:
        prompt, key = documents.passkey_prompt(tokenizer, context - ANSWER_TOKENS, depth, seed)
        return Passkey(prompt, lambda tokens: key in tokenizer.decode(list(tokens)))

    keys = (passkey(depth, 1000 + i) for i, depth in enumerate(DEPTHS))
    # In a short context the question alone may take more than there is: then nothing is asked.
    asked = tuple(key for key in keys if len(key.prompt) + ANSWER_TOKENS <= context)
    return Exam(found, context // 2, asked, workload.prefill_chunk_tokens)


def read(path: Path | None, shipped: str) -> tuple[str, str]:
    """A user's text or the shipped one, and what to call it in a message."""
    from profiles import documents

    return (documents.shipped(shipped), f"the shipped {shipped}") if path is None else (documents.read(path), str(path))
