"""What a calibration document is told early and has to fetch late: passkeys, key-value pairs, copies of random tokens.

A plain text hides the heads that fetch: a cache that forgets everything far away looks nearly free on it. Passkeys and
pairs are told as sentences and asked for in other ones; a random sequence is simply begun again, which heads that look
for what followed the same tokens before (Olsson et al. 2022, arXiv:2209.11895) complete and no other knowledge does.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from profiles.documents import KEYS, Tokenizer

TOKENS_A_PROBE, MOST_PROBES = 512, 3
"""Passkeys of a document, as many copies, and twice as many pairs, half of them asked for: by its length."""

COPIED_TOKENS = 24

NAMES = ("red", "blue", "green", "north", "south", "silver", "second", "third", "last")


@dataclass(frozen=True, slots=True)
class Probe:
    """Tokens that are told early, and those that can be foretold from them late; none where nothing is asked."""

    told: tuple[int, ...]
    asked: tuple[int, ...] = ()


def probes_for(tokens: int) -> int:
    """How many passkeys a document of a length is told.

    >>> probes_for(8192), probes_for(1024), probes_for(64)
    (3, 2, 1)
    """
    return min(max(tokens // TOKENS_A_PROBE, 1), MOST_PROBES)


def with_probes(tokenizer: Tokenizer, document: Sequence[int], seed: int) -> tuple[int, ...]:
    """The document, as long as before, told in its first half what is asked for in its second.

    Only what fits between the two is told: of 100 tokens next to nothing.
    """
    chance = random.Random(seed)
    length, result = len(document), list(document)
    count = probes_for(length)
    probes = [*_passkeys(tokenizer, count, chance), *_pairs(tokenizer, count, chance)]
    probes += _copies(document, count, chance)
    chance.shuffle(probes)
    room, fitting = length * 11 // 20 - length // 3, list[Probe]()
    for probe in probes:
        if len(probe.told) <= room:
            fitting.append(probe)
            room -= len(probe.told)
    places = sorted(chance.choices(range(length // 20, length // 3), k=len(fitting)), reverse=True)
    for place, probe in zip(places, fitting, strict=True):
        result[place:place] = probe.told
    asked = [probe.asked for probe in fitting if probe.asked]
    step = (length - length * 11 // 20) // max(len(asked), 1)
    for i, tokens in enumerate(asked):
        place = length * 11 // 20 + i * step
        result[place:place] = tokens
    return tuple(result[:length])


def _passkeys(tokenizer: Tokenizer, count: int, chance: random.Random) -> Iterator[Probe]:
    for name in chance.sample(NAMES, count):
        number = chance.randint(10000, 99999)
        yield Probe(
            _ids(tokenizer, f"\n\nThe {name} passkey is {number}. Remember it: {number} is the {name} passkey.\n\n"),
            _ids(tokenizer, f"\n\nWhat is the {name} passkey? The {name} passkey is {number}.\n\n"),
        )


def _pairs(tokenizer: Tokenizer, count: int, chance: random.Random) -> Iterator[Probe]:
    """Twice as many, every other one asked for."""
    for i, key in enumerate(chance.sample(KEYS, 2 * count)):
        number = chance.randint(10000, 99999)
        question = f"\n\nWhat is the value of {key}? The value of {key} is {number}.\n\n"
        told = _ids(tokenizer, f"\n\nThe value of {key} is {number}.\n\n")
        yield Probe(told, () if i % 2 else _ids(tokenizer, question))


def _copies(document: Sequence[int], count: int, chance: random.Random) -> list[Probe]:
    """Random sequences of tokens of the document, which surely were trained; none where it has few."""
    known = sorted(set(document[1:]))  # the first may begin every sequence
    if len(known) < COPIED_TOKENS:
        return []
    drawn = (tuple(chance.sample(known, COPIED_TOKENS)) for _ in range(count))
    return [Probe(sequence, sequence) for sequence in drawn]


def _ids(tokenizer: Tokenizer, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)
