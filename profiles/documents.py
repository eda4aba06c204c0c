"""Token documents to calibrate and verify on: slices of a text that never overlap, and prompts that hide a number."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import cast

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from planner.errors import InputError

Tokenizer = PreTrainedTokenizerBase

CALIBRATION_TEXT = "calibration.txt"
VERIFICATION_TEXT = "verification.txt"
FILLER = (
    "The grass is green. The sky is blue. The sun is yellow. Here we go. There and back again.",
    "The river runs slowly past the mill. A boat lies at the landing. Nobody is in sight.",
    "In the evening the lamps are lit along the street, and the shops close one by one.",
)
KEYS = (
    "apple",
    "bridge",
    "castle",
    "dragon",
    "engine",
    "forest",
    "garden",
    "harbour",
    "island",
    "jungle",
    "kettle",
    "ladder",
    "meadow",
    "needle",
    "orchard",
    "pillow",
    "quarry",
    "river",
    "saddle",
    "temple",
    "valley",
    "window",
)
"""What the numbers of key-value pairs are stored under."""

SHARED = 32
"""Tokens that documents have in common by no chance."""

PAIRS = 8
"""Key-value pairs that a prompt holds: one is asked for, the others can be mistaken for it."""


@dataclass(frozen=True, slots=True)
class Recall:
    """A prompt that hides a number, how many of its last tokens ask for it, and the number."""

    prompt: tuple[int, ...]
    question_tokens: int
    answer: str


def tokenizer(directory: Path) -> Tokenizer:
    """The tokenizer of an artefact or of a Hugging Face directory."""
    return cast(Tokenizer, AutoTokenizer.from_pretrained(directory, local_files_only=True))


def shipped(name: str) -> str:
    """A public-domain text that comes with the package."""
    return resources.files("profiles").joinpath("texts", name).read_text(encoding="utf-8")


def length(tokenizer: Tokenizer, text: str) -> int:
    """How many tokens a text has."""
    return sum(map(len, _works(tokenizer, text)))


@dataclass(frozen=True, slots=True)
class Cut:
    """Documents cut from a text; `across` works where those are too short for them."""

    documents: tuple[tuple[int, ...], ...]
    across: bool


def cut(tokenizer: Tokenizer, text: str, lengths: Sequence[int], where: str) -> Cut:
    """Disjoint token slices of these lengths, each starting a document; InputError where there are too few tokens.

    A text may hold several works, with form feeds between them. Slices then go through them in turns, each of one work:
    what a document says far back matters more within a work. Those of one work are spread evenly over it. Where works
    are too short for that, all are one.
    """
    works = _works(tokenizer, text)
    if sum(map(len, works)) < sum(lengths):
        size = f"{'up to ' * (min(lengths) < max(lengths))}{max(lengths)}"
        raise InputError(
            f"{where}: holds {sum(map(len, works))} tokens where {len(lengths)} documents of {size} need"
            f" {sum(lengths)}; give a longer text, or ask for fewer or shorter documents"
        )
    places = _in_turns([len(work) for work in works], lengths)
    if places is None:
        works = [[token for work in works for token in work]]
    bos = tokenizer.bos_token_id
    start = [] if bos is None or tokenizer("a").input_ids[0] != bos else [bos]
    found: list[tuple[int, ...]] = [()] * len(lengths)
    for number, ids in enumerate(works):
        own = [i for i in range(len(lengths)) if places is None or places[i] == number]
        slack = (len(ids) - sum(lengths[i] for i in own)) // max(len(own), 1)
        at = 0
        for i in own:
            found[i] = tuple((start + ids[at : at + lengths[i]])[: lengths[i]])
            at += lengths[i] + slack
    return Cut(tuple(found), places is None)


def slices(tokenizer: Tokenizer, text: str, lengths: Sequence[int], where: str) -> tuple[tuple[int, ...], ...]:
    """The documents of `cut`."""
    return cut(tokenizer, text, lengths, where).documents


def others(
    tokenizer: Tokenizer, text: str, documents: Sequence[Sequence[int]], where: str
) -> tuple[tuple[int, ...], ...] | None:
    """As many documents, as long, that share no passage with these; None where the text has no room for them."""
    count, tokens = len(documents), len(documents[0])
    room = length(tokenizer, text) // tokens
    taken = {tuple(each[i : i + SHARED]) for each in documents for i in range(len(each) - SHARED + 1)}
    for number in range(2 * count, min(room, 4 * count) + 1):
        found = [
            document
            for document in slices(tokenizer, text, [tokens] * number, where)
            if not any(document[i : i + SHARED] in taken for i in range(0, tokens - SHARED + 1, SHARED))
        ]
        if len(found) >= count:
            return tuple(found[:count])
    return None


def _works(tokenizer: Tokenizer, text: str) -> list[list[int]]:
    """The tokens of each work of a text, with a blank line after each but the last."""
    parts = [part.strip("\n") for part in text.split("\f")] if "\f" in text else [text]
    ended = [*(f"{part}\n\n" for part in parts[:-1]), parts[-1]]
    return [list(tokenizer(part, add_special_tokens=False, verbose=False).input_ids) for part in ended]


def _in_turns(rooms: Sequence[int], lengths: Sequence[int]) -> list[int] | None:
    """The work that each length is cut from, the next one with room: in this order, or else the longest first.

    None where there is no room either way.

    >>> _in_turns([10, 30, 20], [8, 8, 8, 8, 8])
    [0, 1, 2, 1, 1]
    >>> _in_turns([10, 12], [5, 12]), _in_turns([10, 10], [15])
    ([0, 1], None)
    >>> _in_turns([12, 10], [3, 12])
    [1, 0]
    """
    for order in (range(len(lengths)), sorted(range(len(lengths)), key=lambda i: -lengths[i])):
        left, found = list(rooms), dict[int, int]()
        for number, i in enumerate(order):
            turns = ((number + step) % len(left) for step in range(len(left)))
            place = next((turn for turn in turns if left[turn] >= lengths[i]), None)
            if place is None:
                break
            left[place] -= lengths[i]
            found[i] = place
        if len(found) == len(lengths):
            return [found[i] for i in range(len(lengths))]
    return None


def passkey_prompt(tokenizer: Tokenizer, tokens: int, depth: float, seed: int) -> Recall:
    """A prompt that hides a passkey at a depth of filler; over `tokens` only without filler."""
    chance = random.Random(seed)
    key = str(chance.randint(10000, 99999))
    head = "There is an important piece of information hidden in the text below. Find it and memorise it.\n\n"
    needle = f"\nThe secret passkey is {key}. Remember it. {key} is the secret passkey.\n"
    question = "\n\nWhat is the secret passkey? The secret passkey is"
    return _hidden(tokenizer, (head, [needle], question), tokens, depth, chance, key)


def pair_prompt(tokenizer: Tokenizer, tokens: int, depth: float, seed: int, pairs: int = PAIRS) -> Recall:
    """A prompt of filler with random key-value pairs strewn over it, and a question for the one at a depth.

    Unlike a passkey the number is told once, and the others differ from it by their keys alone. Over `tokens` only
    without filler.
    """
    if not 1 <= pairs <= len(KEYS):
        raise InputError(f"pairs: found {pairs}; a prompt holds 1 to {len(KEYS)}")
    chance = random.Random(seed)
    keys = chance.sample(KEYS, pairs)
    numbers = [str(number) for number in chance.sample(range(10000, 100000), pairs)]
    asked = min(int(depth * pairs), pairs - 1)
    head = "Values are stored under keys in the text below. Find them and memorise them.\n\n"
    needles = [f"\nThe value of {key} is {number}.\n" for key, number in zip(keys, numbers, strict=True)]
    question = f"\n\nWhat is the value of {keys[asked]}? The value of {keys[asked]} is"
    return _hidden(tokenizer, (head, needles, question), tokens, depth, chance, numbers[asked])


def _hidden(
    tokenizer: Tokenizer,
    told: tuple[str, list[str], str],
    tokens: int,
    depth: float,
    chance: random.Random,
    answer: str,
) -> Recall:
    """Opening, sentences in filler, and question: a single sentence at the depth, several at even distances."""

    def encode(text: str) -> list[int]:
        return list(tokenizer(text, add_special_tokens=False).input_ids)

    head, question = encode(told[0]), encode(told[2])
    needles = [encode(sentence) for sentence in told[1]]
    room = max(tokens - len(head) - len(question) - sum(map(len, needles)), 0)
    filler: list[int] = []
    while len(filler) < room:
        filler += encode(" " + chance.choice(FILLER))
    filler = filler[:room]
    depths = [depth] if len(needles) == 1 else [(i + 0.5) / len(needles) for i in range(len(needles))]
    prompt, at = head, 0
    for needle, place in zip(needles, depths, strict=True):
        cut = round(place * room)
        prompt = [*prompt, *filler[at:cut], *needle]
        at = cut
    return Recall((*prompt, *filler[at:], *question), len(question), answer)


def read(path: Path) -> str:
    """A user's text file."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text (byte {error.start})") from error
