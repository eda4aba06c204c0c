"""Calibration documents never overlap, are as long as asked, and hide facts that they later ask for."""

import re
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from planner.errors import InputError
from profiles.documents import (
    CALIBRATION_TEXT,
    VERIFICATION_TEXT,
    cut,
    length,
    others,
    pair_prompt,
    passkey_prompt,
    read,
    shipped,
    slices,
)

WORDS = " ".join(f"word{i}" for i in range(3000))


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_llama)
    return found


class Beginning:
    """A tokenizer of one token a word that puts a beginning-of-sequence token first where it is asked to."""

    bos_token_id = 0

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> "Beginning.Output":
        return self.Output([0] * add_special_tokens + [1 + int(word) for word in re.findall(r"\d+", text)])

    class Output:
        """What a tokenizer returns."""

        def __init__(self, ids: list[int]) -> None:
            self.input_ids = ids or [0]


# --- slices -------------------------------------------------------------------------------------


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(1, 400), min_size=1, max_size=12))
def test_slices_are_disjoint_and_as_long_as_asked(tokenizer: PreTrainedTokenizerBase, lengths: list[int]) -> None:
    ids = tokenizer(WORDS, add_special_tokens=False).input_ids
    found = slices(tokenizer, WORDS, lengths, "here")
    assert [len(document) for document in found] == lengths
    at = 0
    for document in found:
        while tuple(ids[at : at + len(document)]) != document:  # raises where it is not further on in the text
            at += 1
            assert at <= len(ids)
        at += len(document)


def test_slices_are_spread_over_the_text(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer(WORDS, add_special_tokens=False).input_ids
    last = slices(tokenizer, WORDS, [100] * 4, "here")[-1]
    places = [i for i in range(len(ids) - 100) if tuple(ids[i : i + 100]) == last]
    assert places and min(places) > len(ids) // 2


def test_every_slice_starts_a_document_where_the_tokenizer_says_so() -> None:
    text = " ".join(str(i) for i in range(100))
    found = slices(Beginning(), text, [10, 20, 5], "here")  # type: ignore[arg-type]
    assert [document[0] for document in found] == [0, 0, 0]
    assert [len(document) for document in found] == [10, 20, 5]
    rest = [token for document in found for token in document[1:]]
    assert len(set(rest)) == len(rest)


@pytest.mark.parametrize("text", ["", "a", "short, too short"])
def test_a_short_text_is_refused(tokenizer: PreTrainedTokenizerBase, text: str) -> None:
    with pytest.raises(InputError, match=r"mine\.txt: holds \d+ tokens where 3 documents of 200 need 600; "):
        slices(tokenizer, text, [200, 200, 200], "mine.txt")


def test_a_text_that_is_just_long_enough_is_used_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer(WORDS, add_special_tokens=False).input_ids
    half = len(ids) // 2
    first, second = slices(tokenizer, WORDS, [half, len(ids) - half], "here")
    assert [*first, *second] == ids
    with pytest.raises(InputError):
        slices(tokenizer, WORDS, [half, len(ids) - half + 1], "here")


def test_documents_are_cut_from_the_works_of_a_text_in_turns(tokenizer: PreTrainedTokenizerBase) -> None:
    works = [" ".join(f"{name}{i}" for i in range(400)) for name in ("red", "green", "blue")]
    found = slices(tokenizer, "\n\f\n".join(works), [300, 300, 300, 200, 200], "here")
    assert [len(document) for document in found] == [300, 300, 300, 200, 200]
    for document, name in zip(found, ("red", "green", "blue", "red", "green"), strict=True):
        assert set(re.findall("red|green|blue", tokenizer.decode(document))) == {name}
    ids = [tokenizer(work, add_special_tokens=False).input_ids for work in works]
    assert list(found[0]) == ids[0][:300] and list(found[3]) != ids[0][:200]


def test_works_that_are_too_short_are_one_text(tokenizer: PreTrainedTokenizerBase) -> None:
    works = [" ".join(f"{name}{i}" for i in range(100)) for name in ("red", "green", "blue")]
    size = length(tokenizer, "\f".join(works))
    found = cut(tokenizer, "\f".join(works), [size], "here")
    assert found.across
    assert tokenizer.decode(found.documents[0]) == "\n\n".join(works)
    assert not cut(tokenizer, "\f".join(works), [size // 4], "here").across


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("between", ["\n", "\f"])
def test_other_documents_share_nothing_with_the_first(
    tokenizer: PreTrainedTokenizerBase, count: int, between: str
) -> None:
    text = between.join(" ".join(f"{name}{i}" for i in range(1500)) for name in ("red", "green", "blue"))
    first = slices(tokenizer, text, [400] * count, "here")
    found = others(tokenizer, text, first, "here")
    assert found is not None and len(found) == count
    assert [len(document) for document in found] == [400] * count
    runs = {each[i : i + 20] for each in first for i in range(381)}
    assert not any(each[i : i + 20] in runs for each in found for i in range(381))
    assert others(tokenizer, text, slices(tokenizer, text, [length(tokenizer, text) * 2 // 3], "here"), "here") is None


# --- facts --------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(400, 3000), depth=st.floats(0, 1), seed=st.integers(0, 99))
def test_a_passkey_lies_at_its_depth(tokenizer: PreTrainedTokenizerBase, tokens: int, depth: float, seed: int) -> None:
    recall = passkey_prompt(tokenizer, tokens, depth, seed)
    prompt, key = recall.prompt, recall.answer
    assert tokens - 1 <= len(prompt) <= tokens
    text = tokenizer.decode(prompt)
    assert re.fullmatch(r"\d{5}", key)
    assert text.count(key) == 2
    assert text.endswith("What is the secret passkey? The secret passkey is")
    assert key not in text[text.rindex("What is") :]
    needle = tokenizer(f"\nThe secret passkey is {key}. Remember it. {key} is the secret passkey.\n").input_ids
    at = next(i for i in range(len(prompt)) if list(prompt[i : i + len(needle)]) == needle)
    fixed = len(prompt) - len(needle)
    # The opening and the question stand outside the filler whose depth is meant.
    assert abs(at - depth * fixed) < 200
    assert recall == passkey_prompt(tokenizer, tokens, depth, seed)


@settings(max_examples=40, deadline=None)
@given(tokens=st.integers(500, 3000), depth=st.floats(0, 1), seed=st.integers(0, 99), pairs=st.integers(1, 12))
def test_pairs_differ_and_the_one_at_the_depth_is_asked_for(
    tokenizer: PreTrainedTokenizerBase, tokens: int, depth: float, seed: int, pairs: int
) -> None:
    recall = pair_prompt(tokenizer, tokens, depth, seed, pairs)
    assert tokens - 1 <= len(recall.prompt) <= tokens
    question = tokenizer.decode(recall.prompt[len(recall.prompt) - recall.question_tokens :])
    context = tokenizer.decode(recall.prompt[: len(recall.prompt) - recall.question_tokens])
    told = re.findall(r"The value of (\w+) is (\d{5})\.", context)
    assert len(told) == len(dict(told)) == len({number for _, number in told}) == pairs
    asked = re.fullmatch(r"\s*What is the value of (\w+)\? The value of (\w+) is", question)
    assert asked is not None
    assert asked[1] == asked[2] == told[min(int(depth * pairs), pairs - 1)][0]
    assert dict(told)[asked[1]] == recall.answer
    assert recall == pair_prompt(tokenizer, tokens, depth, seed, pairs)


@pytest.mark.parametrize("pairs", [0, 99])
def test_a_number_of_pairs_that_has_no_keys_is_refused(tokenizer: PreTrainedTokenizerBase, pairs: int) -> None:
    with pytest.raises(InputError, match=f"pairs: found {pairs}; a prompt holds 1 to"):
        pair_prompt(tokenizer, 1000, 0.5, 0, pairs)


# --- texts --------------------------------------------------------------------------------------


def test_the_shipped_texts_share_no_line() -> None:
    calibration, verification = shipped(CALIBRATION_TEXT), shipped(VERIFICATION_TEXT)
    long = [{line for line in text.splitlines() if len(line) > 40} for text in (calibration, verification)]
    assert min(map(len, long)) > 100
    assert not long[0] & long[1]


def test_a_text_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.txt: cannot be read"):
        read(tmp_path / "none.txt")
    (tmp_path / "latin").write_bytes("Müller".encode("latin-1"))
    with pytest.raises(InputError, match=r"latin: is not UTF-8 text \(byte 1\)"):
        read(tmp_path / "latin")
    (tmp_path / "utf8").write_text("Müller", encoding="utf-8")
    assert read(tmp_path / "utf8") == "Müller"
