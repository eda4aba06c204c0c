"""The documents a model is calibrated on share no token, and a short text is told of or refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from planner.compile.calibration import WEIGHT_DOCUMENTS, Texts, documents_for_each, most_held_out, texts
from planner.config import parse_request
from planner.errors import InputError
from profiles import documents

CONTEXT, DOCUMENTS = 128, 2
PRICED, HELD_OUT = DOCUMENTS * documents_for_each(CONTEXT), most_held_out(CONTEXT)
LEAST = CONTEXT * (DOCUMENTS + 2)
"""Tokens of what is asked for, a document for matrices and one for whole settings."""
MOST = CONTEXT * (PRICED + WEIGHT_DOCUMENTS + HELD_OUT)


@pytest.fixture
def cut(tiny: Callable[[str], Path], tmp_path: Path) -> Callable[[int], Texts]:
    """The documents of a text of so many tokens, all of them different words."""
    tokenizer = documents.tokenizer(tiny("llama"))

    def of(tokens: int) -> Texts:
        words = " ".join(f"word{i}" for i in range(tokens))
        ids = tokenizer(words, add_special_tokens=False).input_ids[:tokens]
        (tmp_path / "text.txt").write_text(tokenizer.decode(ids))
        told = (
            "schema: planner/model@1\n"
            f"source: {{huggingface: '{tiny('llama')}'}}\n"
            f"workload: {{context_tokens: [{CONTEXT}], new_tokens: 8}}\n"
            "goal: {minimise: kv_bytes, limits: {loss_nats: 0.1}}\n"
            f"calibration: {{documents: {DOCUMENTS}, text: '{tmp_path / 'text.txt'}'}}\n"
        )
        request = parse_request(told, "tiny", tmp_path, "tiny.yaml")
        assert documents.length(tokenizer, (tmp_path / "text.txt").read_text()) == tokens
        return texts(request, tokenizer, 0)

    return of


def test_a_long_text_gives_all_documents(cut: Callable[[int], Texts]) -> None:
    found = cut(MOST)
    assert {len(document) for document in found.every} == {CONTEXT}
    assert (len(found.priced), len(found.short), len(found.held_out)) == (PRICED, WEIGHT_DOCUMENTS, HELD_OUT)
    assert len(set(found.every)) == len(found.every)
    assert found.notes == ()


@pytest.mark.parametrize("missing", range(1, (MOST - LEAST) // CONTEXT + 1))
def test_a_shorter_text_gives_fewer_and_says_of_what(cut: Callable[[int], Texts], missing: int) -> None:
    found = cut(MOST - missing * CONTEXT + CONTEXT - 1)
    counts = len(found.priced), len(found.short), len(found.held_out)
    wanted = PRICED, WEIGHT_DOCUMENTS, HELD_OUT
    assert sum(counts) == sum(wanted) - missing
    assert counts[0] >= DOCUMENTS and min(counts) >= 1
    told = [
        f"room for {found} of the {wanted} " for found, wanted in zip(counts, wanted, strict=True) if found < wanted
    ]
    assert len(told) == len(found.notes)
    assert all(phrase in note and "text.txt" in note for phrase, note in zip(told, found.notes, strict=True))


def test_a_text_that_is_too_short_is_refused(cut: Callable[[int], Texts]) -> None:
    assert len(cut(LEAST).every) == DOCUMENTS + 2
    with pytest.raises(InputError, match=f"holds {LEAST - 1} tokens where"):
        cut(LEAST - 1)


@pytest.mark.parametrize("contexts", [(2048, 8192), (8192, 2048), (512, 2048, 8192), (8192,)])
def test_the_shipped_text_has_works_long_enough(contexts: tuple[int, ...]) -> None:
    """By a tokenizer of four characters a token, as those of real models are."""
    works = [len(work) // 4 for work in documents.shipped(documents.CALIBRATION_TEXT).split("\f")]
    lengths = [n for n in contexts for _ in range(3)] + [512] * WEIGHT_DOCUMENTS + [max(contexts)]
    assert documents._in_turns(works, lengths) is not None


def test_documents_across_works_are_told_of(tiny: Callable[[str], Path], tmp_path: Path) -> None:
    names = ("red", "green", "blue", "grey", "black", "white") * 4
    works = [" ".join(f"{name}{i}" for i in range(60)) for name in names]
    (tmp_path / "text.txt").write_text("\f".join(works))
    told = (
        "schema: planner/model@1\n"
        f"source: {{huggingface: '{tiny('llama')}'}}\n"
        "workload: {context_tokens: [TOKENS], new_tokens: 8}\n"
        "goal: {minimise: kv_bytes, limits: {loss_nats: 0.1}}\n"
        f"calibration: {{documents: 1, text: '{tmp_path / 'text.txt'}'}}\n"
    )
    tokenizer = documents.tokenizer(tiny("llama"))
    size = documents.length(tokenizer, works[0])
    for tokens, across in ((size // 2, False), (2 * size, True)):
        asked = parse_request(told.replace("TOKENS", str(tokens)), "tiny", tmp_path, "tiny.yaml")
        found = texts(asked, tokenizer, 0)
        assert found.across == across
        assert any("too short for documents" in note for note in found.notes) == across
