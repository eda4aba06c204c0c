"""What a plan asks of the kernels beside this file (layers.json), and the fastest of the variants kept for each.

    attend = tuned("decode_attention", "decode", "layer 0 kv heads 0, 1", decode_attention)
    out = attend(q, k, v, ...)

Which variant is fastest was predicted when the plan was compiled. On its first call where a GPU is present a `Tuned`
times those that were kept, best predicted first, and stays with the fastest.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Generic, TypeVar

import torch
from triton.testing import do_bench

from .contract import Variant

LAYERS = "layers.json"


@dataclass(frozen=True)
class Use:
    """One kernel at one shape: `serves` says of what, `variants` are best predicted first."""

    module: str
    phase: str
    serves: tuple[str, ...]
    shape: dict[str, object]
    variants: tuple[Variant, ...]


@lru_cache
def uses(module: str, folder: Path = Path(__file__).parent) -> tuple[Use, ...]:
    """What the plan asks of a kernel module; nothing where no plan lies beside it."""
    path = folder / LAYERS
    if not path.is_file():
        return ()
    entries = json.loads(path.read_text(encoding="utf-8"))["uses"]
    return tuple(_use(entry) for entry in entries if entry["module"] == module)


def variant_of(entry: dict[str, object]) -> Variant:
    """A Variant as layers.json spells it.

    >>> variant_of({"tiles": [["BLOCK_N", 64]], "num_warps": 4, "num_stages": 2})
    Variant(tiles=(('BLOCK_N', 64),), num_warps=4, num_stages=2)
    """
    return Variant(tuple((name, size) for name, size in entry["tiles"]), entry["num_warps"], entry["num_stages"])


T = TypeVar("T")


@dataclass
class Tuned(Generic[T]):
    """A launcher that takes `variant`, with the fastest of some variants once it was called on a GPU."""

    launcher: Callable[..., T]
    variants: Sequence[Variant]
    best: Variant | None = field(default=None, init=False)

    def __call__(self, *args: object, **named: object) -> T:
        if self.best is None and len(self.variants) > 1 and torch.cuda.is_available():
            self.best = min(self.variants, key=lambda each: self._milliseconds(each, args, named))
        best = self.best or next(iter(self.variants), None)
        return self.launcher(*args, variant=best, **named)

    def _milliseconds(self, variant: Variant, args: tuple[object, ...], named: dict[str, object]) -> float:
        return do_bench(lambda: self.launcher(*args, variant=variant, **named), warmup=5, rep=20)


def tuned(module: str, phase: str, serves: str, launcher: Callable[..., T]) -> Tuned[T]:
    """A launcher with the variants that the plan kept for what it serves in a phase; its own where it kept none."""
    kept = (use.variants for use in uses(module) if use.phase == phase and serves in use.serves)
    return Tuned(launcher, next(kept, ()))


def _use(entry: dict[str, object]) -> Use:
    variants = tuple(variant_of(each) for each in entry["variants"])
    return Use(entry["module"], entry["phase"], tuple(entry["serves"]), entry["shape"], variants)
