"""A GGUF file loaded into llama.cpp in this process: scored, continued, timed, its bytes counted."""

import ctypes
import re
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType
from numpy.typing import NDArray

from backends.llamacpp.library import (
    FLASH_ATTENTION,
    NO_FLASH_ATTENTION,
    Batch,
    KvOverride,
    library,
    reason,
    threads,
    told,
)
from planner.errors import InputError
from planner.executor import Timing

NO_WINDOW = 1 << 30
"""A window that no context fills."""

CACHE_LINE = re.compile(r"\( *(\d+) cells, +(\d+) layers, +\d+/ *(\d+) seqs\), K \((\w+)\): .*, V \((\w+)\)")
"""What llama.cpp logs of each cache that it allocates."""


@dataclass(frozen=True, slots=True)
class Run:
    """How a file is run: types of keys and values, tokens computed at once, flash attention, threads."""

    k: str = "f16"
    v: str = "f16"
    chunk_tokens: int = 256
    flash: bool = True
    threads: int = field(default_factory=threads)


class Model:
    """A file's weights in llama.cpp, freed with this object."""

    def __init__(self, path: Path, window: bool = True) -> None:
        """Load a file; without `window` its windowed layers keep everything too."""
        lib = library()
        params = lib.llama_model_default_params()
        overrides = _no_window(path) if not window else None
        if overrides is not None:
            params.kv_overrides = ctypes.addressof(overrides)
        with told() as lines:
            self.handle = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self.handle:
            raise InputError(f"{path}: llama.cpp does not load it: {reason(lines)}")
        self.vocabulary = int(lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.handle)))
        weakref.finalize(self, lib.llama_model_free, self.handle)


def _no_window(path: Path) -> ctypes.Array[KvOverride]:
    """Overrides of the window of `granite_swa`, ended by an entry without a key."""
    found = (KvOverride * 2)()
    found[0].key = b"granite_swa.attention.sliding_window"
    found[0].value = NO_WINDOW
    return found


class Context:
    """A cache for some sequences, and what computes over it; freed with this object."""

    def __init__(self, model: Model, run: Run, context_tokens: int, sequences: int = 1, shared: bool = False) -> None:
        """Room for so many tokens of each sequence, or where it is `shared` of all of them together."""
        lib = library()
        self.model, self.run, self.lib = model, run, lib
        params = lib.llama_context_default_params()
        each = -(-context_tokens // 256) * 256  # what llama.cpp would round it up to
        params.n_ctx, params.n_seq_max = each if shared else each * sequences, sequences
        params.n_batch = params.n_ubatch = params.n_outputs_max_per_seq = max(run.chunk_tokens, sequences)
        params.n_threads = params.n_threads_batch = run.threads
        params.flash_attn_type = FLASH_ATTENTION if run.flash else NO_FLASH_ATTENTION
        params.type_k, params.type_v = (GGMLQuantizationType[name.upper()].value for name in (run.k, run.v))
        params.swa_full, params.kv_unified = False, shared
        with told() as lines:
            self.handle = lib.llama_init_from_model(model.handle, params)
        if not self.handle:
            raise InputError(f"llama.cpp refuses a cache of {context_tokens} tokens: {reason(lines)}")
        weakref.finalize(self, lib.llama_free, self.handle)
        self.memory = lib.llama_get_memory(self.handle)
        self.caches = [match.groups() for line in lines if (match := CACHE_LINE.search(line))]

    def forget(self, start: int, sequence: int = 0) -> None:
        """Drop what a sequence holds from a position on."""
        self.lib.llama_memory_seq_rm(self.memory, sequence, start, -1)

    def adopt(self, sequence: int, by: int) -> None:
        """Let another sequence see all that one holds."""
        self.lib.llama_memory_seq_cp(self.memory, sequence, by, -1, -1)

    def kv_bytes(self, kv_width: int) -> int:
        """Bytes of the cells that were allocated; `kv_width` numbers of keys, and of values, in each layer."""
        total = 0
        for cells, layers, streams, k, v in self.caches:
            row = sum(_row_bytes(name, kv_width) for name in (k, v))
            total += int(cells) * int(layers) * int(streams) * row
        return total

    def step(
        self, tokens: Sequence[int], start: int, sequence: int = 0, wanted: int | None = None
    ) -> NDArray[np.float32]:
        """Logits [tokens - wanted, vocab] of tokens of one sequence that begin at a position, from `wanted` on; of the
        last alone if None."""
        size = len(tokens)
        first = size - 1 if wanted is None else wanted
        rows = [(token, start + i, sequence, i >= first) for i, token in enumerate(tokens)]
        return self._decode(rows)

    def step_all(self, tokens: Sequence[int], positions: Sequence[int]) -> NDArray[np.float32]:
        """Logits [sequences, vocab] of one token for every sequence."""
        rows = [(token, at, i, True) for i, (token, at) in enumerate(zip(tokens, positions, strict=True))]
        return self._decode(rows)

    def _decode(self, rows: Sequence[tuple[int, int, int, bool]]) -> NDArray[np.float32]:
        with _batch(rows) as batch, told() as lines:
            status = self.lib.llama_decode(self.handle, batch)
        if status:
            raise InputError(f"llama.cpp cannot decode {len(rows)} tokens (status {status}): {reason(lines)}")
        wanted = sum(row[3] for row in rows)
        if not wanted:
            return np.empty((0, self.model.vocabulary), np.float32)
        read = self.lib.llama_get_logits(self.handle)
        return np.ctypeslib.as_array(read, (wanted, self.model.vocabulary)).copy()

    def read(self, tokens: Sequence[int], chunk_tokens: int, sequence: int = 0) -> NDArray[np.float32]:
        """Prefill a sequence from its start; logits [vocab] after its last token."""
        step = min(chunk_tokens, self.run.chunk_tokens)
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step]
            last = self.step(part, start, sequence, None if start + step >= len(tokens) else len(part))
        found: NDArray[np.float32] = last[-1]
        return found


@contextmanager
def _batch(rows: Sequence[tuple[int, int, int, bool]]) -> Iterator[Batch]:
    """(token, position, sequence, whether its logits are wanted) rows as llama.cpp takes them."""
    lib = library()
    batch = lib.llama_batch_init(len(rows), 0, 1)
    try:
        batch.n_tokens = len(rows)
        for i, (token, position, sequence, wanted) in enumerate(rows):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position, 1
            batch.seq_id[i][0], batch.logits[i] = sequence, wanted
        yield batch
    finally:
        lib.llama_batch_free(batch)


def _row_bytes(name: str, width: int) -> int:
    return int(library().ggml_row_size(GGMLQuantizationType[name.upper()].value, width))


@dataclass
class LlamaCppSession:
    """A planned model in this process. `kv_width`: numbers of keys, and of values, that a token leaves in a layer."""

    model: Model
    run: Run
    kv_width: int
    weight_bytes: int

    def score(self, tokens: Sequence[int], first: int, chunk_tokens: int) -> NDArray[np.float32]:
        context = Context(self.model, self.run, len(tokens))
        step = min(chunk_tokens, self.run.chunk_tokens)
        found = []
        for start in range(0, len(tokens), step):
            part = tokens[start : start + step]
            logits = context.step(part, start, wanted=min(max(first - start, 0), len(part)))
            logits -= logits.max(-1, keepdims=True)
            found.append(logits - np.log(np.exp(logits).sum(-1, keepdims=True)))
        scored: NDArray[np.float32] = np.concatenate([rows for rows in found if len(rows)])
        return scored

    def generate(self, prompts: Sequence[Sequence[int]], new_tokens: int) -> list[list[int]]:
        if not prompts or not all(prompts):
            raise InputError("a prompt has no tokens; give at least one prompt of at least one token")
        context = Context(self.model, self.run, max(map(len, prompts)) + new_tokens, len(prompts))
        logits = np.stack([context.read(prompt, self.run.chunk_tokens, i) for i, prompt in enumerate(prompts)])
        steps: list[list[int]] = []
        for done in range(new_tokens):
            tokens = logits.argmax(-1).tolist()
            steps.append(tokens)
            if done + 1 < new_tokens:
                logits = context.step_all(tokens, [len(prompt) + done for prompt in prompts])
        return [[step[row] for step in steps] for row in range(len(prompts))]

    def time(self, prompt: Sequence[int], new_tokens: int, chunk_tokens: int, batch: int = 1) -> Timing:
        context = Context(self.model, self.run, len(prompt) + new_tokens, batch)
        start = time.perf_counter()
        logits = np.stack([context.read(prompt, chunk_tokens, row) for row in range(batch)])
        tokens = logits.argmax(-1).tolist()
        ttft_s = time.perf_counter() - start
        decode_s: list[float] = []
        for done in range(new_tokens):
            start = time.perf_counter()
            tokens = context.step_all(tokens, [len(prompt) + done] * batch).argmax(-1).tolist()
            decode_s.append(time.perf_counter() - start)
        return Timing(ttft_s, tuple(decode_s), context.kv_bytes(self.kv_width), self.weight_bytes)
