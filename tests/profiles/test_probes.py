"""What a calibration document is told early it is asked for late, and it stays as long as it was."""

import random
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from profiles.documents import CALIBRATION_TEXT, shipped, slices
from profiles.probes import COPIED_TOKENS, Probe, _copies, probes_for, with_probes

WORDS = " ".join(f"word{i}" for i in range(3000))
TOLD = re.compile(r"The (\w+) passkey is (\d{5})\. Remember it: (\d{5}) is the (\w+) passkey\.")
ASKED = re.compile(r"What is the (\w+) passkey\? The (\w+) passkey is (\d{5})\.")
PAIR = re.compile(r"The value of (\w+) is (\d{5})\.")
QUESTION = re.compile(r"What is the value of (\w+)\? The value of (\w+) is (\d{5})\.")


@pytest.fixture(scope="module")
def tokenizer(tiny_llama: Path) -> PreTrainedTokenizerBase:
    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(tiny_llama)
    return found


def document(tokenizer: PreTrainedTokenizerBase, tokens: int) -> tuple[int, ...]:
    (found,) = slices(tokenizer, WORDS, [tokens], "here")
    return found


@pytest.mark.parametrize("tokens", [3000, 5000])
@pytest.mark.parametrize("seed", range(4))
def test_what_is_told_early_is_asked_late(tokenizer: PreTrainedTokenizerBase, tokens: int, seed: int) -> None:
    found = with_probes(tokenizer, document(tokenizer, tokens), seed)
    assert len(found) == tokens
    half = tokenizer.decode(found[: tokens // 2]), tokenizer.decode(found[tokens // 2 :])
    told = {name: number for name, number, again, same in TOLD.findall(half[0]) if number == again and name == same}
    assert len(told) == probes_for(tokens)
    assert told == {name: number for name, same, number in ASKED.findall(half[1]) if name == same}
    pairs = dict(PAIR.findall(half[0]))
    asked = {key: number for key, same, number in QUESTION.findall(half[1]) if key == same}
    assert len(pairs) == 2 * probes_for(tokens) and len(asked) == probes_for(tokens)
    assert asked.items() <= pairs.items()
    assert not TOLD.search(half[1]) and not ASKED.search(half[0]) and not QUESTION.search(half[0])


def test_random_sequences_come_twice(tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch) -> None:
    (plain,), made = slices(tokenizer, shipped(CALIBRATION_TEXT), [5000], "here"), list[Probe]()

    def recorded(document: Sequence[int], count: int, chance: random.Random) -> list[Probe]:
        made.extend(_copies(document, count, chance))
        return list(made)

    monkeypatch.setattr("profiles.probes._copies", recorded)
    found = with_probes(tokenizer, plain, 0)
    assert len(made) == probes_for(5000)
    halves = found[:2500], found[2500:]
    for copy in made:
        assert copy.told == copy.asked and len(set(copy.told)) == COPIED_TOKENS and set(copy.told) <= set(plain)
        assert all(any(half[i : i + COPIED_TOKENS] == copy.told for i in range(len(half))) for half in halves)


def test_a_document_of_few_different_tokens_has_no_copies() -> None:
    assert _copies([1, 2, 3] * 100, 3, random.Random(0)) == []


def test_probes_depend_on_the_seed_alone(tokenizer: PreTrainedTokenizerBase) -> None:
    plain = document(tokenizer, 2000)
    assert with_probes(tokenizer, plain, 1) == with_probes(tokenizer, plain, 1)
    assert with_probes(tokenizer, plain, 1) != with_probes(tokenizer, plain, 2)


@pytest.mark.parametrize("tokens", [32, 100, 500])
def test_a_short_document_keeps_its_length(tokenizer: PreTrainedTokenizerBase, tokens: int) -> None:
    assert len(with_probes(tokenizer, document(tokenizer, tokens), 0)) == tokens


@pytest.mark.parametrize("tokens", [64, 200, 500, 800])
def test_a_short_document_is_asked_for_nothing_that_it_was_not_told_whole(
    tokenizer: PreTrainedTokenizerBase, tokens: int
) -> None:
    for seed in range(8):
        text = tokenizer.decode(with_probes(tokenizer, document(tokenizer, tokens), seed))
        told = {name for name, *_ in TOLD.findall(text)}
        pairs = {key for key, _ in PAIR.findall(text.split("What is")[0])}
        assert {name for name, same, _ in ASKED.findall(text) if name == same} <= told
        assert {key for key, same, _ in QUESTION.findall(text) if key == same} <= pairs
