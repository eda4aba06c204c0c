"""The presses of kvpress held to a number of bytes at the end of a document, and their cells run and read back.

kvpress needs a transformers of its own, so `kvpress_worker.py` runs in another environment.

What differs from a planned cache: a press reads the prompt densely, compresses it once where the prompt ends, and from
then on the cache grows; a planned cache forgets from the first chunk on and stays as large as it is. So a press is held
to what is left when all that comes after the prompt has its slots, at 16 bits. Heads of one layer are of unequal length
in AdaKV and DuoAttention: kvpress masks the slots that they do without, and stores all of them.
"""

import json
import math
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from planner.errors import InputError
from planner.spec import ModelSpec

WORKER = Path(__file__).with_name("kvpress_worker.py")
VECTOR_BYTES = 2
"""Keys and values of a press stay floats: they are counted at 16 bits, though they are run in float32."""

Options = tuple[tuple[str, float], ...]


@dataclass(frozen=True, slots=True)
class Press:
    """One contestant: which press, with which options, and what is said of it."""

    name: str
    press: str
    options: Options = ()
    masks: bool = False


PRESSES = (
    Press("SnapKV", "snapkv", (("window", 64),)),
    Press("SnapKV, window 16", "snapkv", (("window", 16),)),
    Press("AdaKV of SnapKV", "adakv-snapkv", masks=True),
    Press("AdaKV of expected attention", "adakv-expected", masks=True),
    # With kvpress's own window of 64 its rule gives up below a fifth of some thousand tokens and is SnapKV.
    Press("PyramidKV, window 8", "pyramidkv", (("window", 8),)),
    Press("DuoAttention, 128 + 256", "duo", (("sinks", 128), ("recent", 256)), masks=True),
    Press("DuoAttention, 16 + 64", "duo", (("sinks", 16), ("recent", 64)), masks=True),
    Press("ExpectedAttention", "expected", (("epsilon", 0.0),)),
    Press("TOVA", "tova"),
)


@dataclass(frozen=True, slots=True)
class Budget:
    """What a press may keep of a prompt so that at the end of `context_tokens` it has a share of the dense slots."""

    context_tokens: int
    share: float

    def kept(self, rest_tokens: int) -> int:
        """Slots for each head, on average, of the prompt before the last `rest_tokens`; none left is zero.

        >>> Budget(2048, 0.125).kept(32), Budget(2048, 0.0625).kept(200)
        (224, 0)
        """
        return max(math.floor(self.share * self.context_tokens) - rest_tokens, 0)


def held(press: Press, budget: Budget, rest_tokens: int, heads: int) -> dict[str, object] | None:
    """A press as the worker takes it; None where it cannot keep so little.

    DuoAttention's number to turn is how many of the model's KV heads stream.

    >>> held(PRESSES[-1], Budget(2048, 0.125), 32, 90)
    {'name': 'TOVA', 'press': 'tova', 'kept': 224}
    >>> held(PRESSES[6], Budget(2048, 0.125), 32, 90)["streaming"]
    84
    >>> held(PRESSES[5], Budget(2048, 0.125), 32, 90) is None
    True
    """
    kept, prompt = budget.kept(rest_tokens), budget.context_tokens - rest_tokens
    told: dict[str, object] = {"name": press.name, "press": press.press, "kept": kept, **dict(press.options)}
    options = dict(press.options)
    if press.press == "duo":
        window = options["sinks"] + options["recent"]
        streaming = math.ceil(heads * (prompt - kept) / (prompt - window))
        return {**told, "streaming": streaming} if kept >= window and streaming <= heads else None
    # What observes is kept; with nothing beside it nothing is chosen.
    return told if kept > max(options.get("window", 0), 4) else None


@dataclass(frozen=True, slots=True)
class Cell:
    """One press on one document: bytes at the end that heads attend to, bytes that are stored, and its scores."""

    needed_bytes: int
    stored_bytes: int
    loss_nats: float
    nll_nats: float


def counted(slots: Mapping[str, float], spec: ModelSpec) -> tuple[int, int]:
    """(bytes that heads attend to, bytes that are stored) of the worker's count of slots of heads.

    Raises InputError where heads are not of one size: the worker's count does not tell them apart.
    """
    sizes = {layer.head_dim for layer in spec.layers}
    if len(sizes) != 1:
        raise InputError(f"model: heads of sizes {sorted(sizes)}; presses are counted where they are of one size")
    slot_bytes = 2 * sizes.pop() * VECTOR_BYTES
    stored = int(slots["stored_slots"])
    return (stored - int(slots["masked_slots"])) * slot_bytes, stored * slot_bytes


@dataclass(frozen=True, slots=True)
class Asked:
    """What the worker is to do: cells by name, each document with its tail, each prompt with its question."""

    documents: Mapping[str, tuple[Sequence[int], int]]
    prompts: Mapping[str, tuple[Sequence[int], int]]
    shares: Sequence[float]
    heads: int
    answer_tokens: int
    texts: Sequence[str]

    def document(self, model: Path) -> dict[str, object]:
        """The worker's input: the presses of all shares go together, so that a prompt is read once."""
        documents = {
            name: {"ids": list(ids), "tail": tail, "presses": list(self.presses(len(ids), tail))}
            for name, (ids, tail) in self.documents.items()
        }
        prompts = {
            name: {
                "ids": list(ids),
                "question": question,
                "presses": list(self.presses(len(ids) + self.answer_tokens, question + self.answer_tokens)),
            }
            for name, (ids, question) in self.prompts.items()
        }
        return {
            "model": str(model),
            "answer_tokens": self.answer_tokens,
            "texts": list(self.texts),
            "documents": documents,
            "prompts": prompts,
        }

    def presses(self, context_tokens: int, rest_tokens: int) -> Iterator[dict[str, object]]:
        """All that can be held to their share, named by it."""
        for share in self.shares:
            for press in PRESSES:
                found = held(press, Budget(context_tokens, share), rest_tokens, self.heads)
                if found is not None:
                    yield {**found, "name": named(share, press)}


def named(share: float, press: Press) -> str:
    """A press at a share.

    >>> named(0.125, PRESSES[-1])
    '0.125 TOVA'
    """
    return f"{share:g} {press.name}"


def work(python: Path, asked: Asked, model: Path, results: Path) -> None:
    """Run the cells that are not there yet in the environment of that Python; InputError tells how it ended."""
    order = results / "asked.json"
    results.mkdir(parents=True, exist_ok=True)
    order.write_text(json.dumps(asked.document(model)))
    done = subprocess.run([str(python), str(WORKER), str(order), str(results)], stderr=subprocess.PIPE, text=True)
    if done.returncode:
        raise InputError(f"{python} {WORKER.name}: ended with {done.returncode}: {done.stderr[-2000:]}")
