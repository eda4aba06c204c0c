"""The documents a model is calibrated on share no token, and a short text is told of or refused."""

from collections.abc import Callable
from pathlib import Path

import pytest

from planner.compile.calibration import WEIGHT_DOCUMENTS, Texts, held_out, texts, times
from planner.config import parse_request
from planner.errors import InputError
from profiles import documents

CONTEXT, DOCUMENTS = 128, 2
PRICED, HELD_OUT = DOCUMENTS * times(CONTEXT), held_out(CONTEXT)
NEEDED = CONTEXT * (PRICED + 1)
"""Tokens of what is priced and one document to run whole settings on."""


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
    found = cut(NEEDED + (WEIGHT_DOCUMENTS + HELD_OUT - 1) * CONTEXT)
    assert {len(document) for document in found.every} == {CONTEXT}
    assert (len(found.priced), len(found.short), len(found.held_out)) == (PRICED, WEIGHT_DOCUMENTS, HELD_OUT)
    assert len(set(found.every)) == len(found.every)
    assert found.notes == ()


@pytest.mark.parametrize("count", range(1, WEIGHT_DOCUMENTS))
def test_a_short_text_leaves_fewer_for_matrices_and_says_so(cut: Callable[[int], Texts], count: int) -> None:
    found = cut(NEEDED + (count + 1) * CONTEXT - 1)
    assert (len(found.short), len(found.held_out)) == (count, 1)
    matrices, sums = found.notes
    assert f"room for {count} of the {WEIGHT_DOCUMENTS} documents that matrices" in matrices and "text.txt" in matrices
    assert f"room for 1 of the {HELD_OUT} documents that sums" in sums


@pytest.mark.parametrize("count", range(1, HELD_OUT))
def test_a_longer_one_leaves_fewer_for_whole_settings(cut: Callable[[int], Texts], count: int) -> None:
    found = cut(NEEDED + (WEIGHT_DOCUMENTS + count) * CONTEXT - 1)
    assert (len(found.short), len(found.held_out)) == (WEIGHT_DOCUMENTS, count)
    (note,) = found.notes
    assert f"room for {count} of the {HELD_OUT} documents that sums of prices" in note


def test_a_text_that_is_too_short_is_refused(cut: Callable[[int], Texts]) -> None:
    with pytest.raises(InputError, match=f"holds {NEEDED + CONTEXT - 1} tokens where"):
        cut(NEEDED + CONTEXT - 1)
