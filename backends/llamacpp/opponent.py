"""llama.cpp at its best on the same model, for others to race: one setting for the whole model, tried and chosen.

The file is the model's own where its source is one, else all matrices are q8_0; the cache is float16 or q8_0, attention
flash or not, on all of the CPUs or half of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from backends.llamacpp.executor import CAPABILITIES, LlamaCppExecutor
from backends.llamacpp.library import threads
from backends.llamacpp.session import LlamaCppSession, Run
from planner.executor import Progress, Timing, Weights
from planner.formats import KV_BLOCK, ggml
from planner.goal import Workload
from planner.plan import trial
from planner.space import FLOAT16, Choice, Full, KvChoice, Site, WeightChoice
from planner.spec import ModelSpec
from planner.verify import quartiles

CACHES = (("f16", True), ("q8_0", True), ("f16", False))
"""Types of the cache, and whether attention is flash; without it values are not cached in blocks."""

FLOAT_CACHES = tuple(each for each in CACHES if each[0] == "f16")

FEW_TOKENS = 64
"""A prompt over which threads are tried."""


@dataclass(frozen=True, slots=True)
class Tried:
    """A setting and what it took."""

    run: Run
    timing: Timing

    @property
    def decode_s(self) -> float:
        return quartiles(self.timing.decode_s).value

    def __str__(self) -> str:
        flash = "flash attention" if self.run.flash else "no flash attention"
        return f"{self.run.k} cache, {flash}, {self.run.threads} threads"


def own_weights(weights: Weights, spec: ModelSpec) -> LlamaCppSession:
    """The model in llama.cpp with its source's own types, or q8_0 where it has none."""
    here = (("dram", 1.0),)
    kept: dict[Site, Choice] = dict.fromkeys(spec.kv_sites, KvChoice(Full(), FLOAT16, FLOAT16, 0, here))
    for site, tensor in zip(spec.weight_sites, spec.tensors, strict=True):
        kept[site] = WeightChoice(CAPABILITIES.as_source(tensor) or ggml("q8_0"), here)
    plan = trial("llama.cpp", Workload((max(FEW_TOKENS, 32),), new_tokens=1), kept)
    return LlamaCppExecutor(weights, spec).open(plan)


def tried(
    session: LlamaCppSession, head_dim: int, prompt: Sequence[int], new_tokens: int, progress: Progress
) -> tuple[Tried, ...]:
    """Every setting over a prompt: first threads over the start of it, then caches with the best of them; a cache in
    blocks only where they divide a head."""
    stage, caches = "trying llama.cpp's settings", CACHES if head_dim % KV_BLOCK == 0 else FLOAT_CACHES
    few, steps, found = prompt[:FEW_TOKENS], 1 + len(caches), list[Tried]()
    progress(stage, 0, steps)
    counts = sorted({threads(), max(threads() // 2, 1)})
    runs = [replace(session.run, threads=count) for count in counts]
    fastest = min((timed(session, run, few, new_tokens) for run in runs), key=lambda one: one.decode_s)
    for kind, flash in caches:
        progress(stage, 1 + len(found), steps)
        found.append(timed(session, replace(fastest.run, k=kind, v=kind, flash=flash), prompt, new_tokens))
    progress(stage, steps, steps)
    return tuple(found)


def timed(session: LlamaCppSession, run: Run, prompt: Sequence[int], new_tokens: int) -> Tried:
    """A setting, timed once."""
    return Tried(run, replace(session, run=run).time(prompt, new_tokens, run.chunk_tokens))
