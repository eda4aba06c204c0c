"""How long one layer's attention takes on a GPU: decode steps and prefill.

A call is a launch, the append of the new keys and values to the cache, and tiles spread over the SMs (attention_work.py
says which). Tiles come in waves; beside them runs the memory, from which the keys and values come, or the second-level
cache where they lie in it. Parameters are relative to the hardware (cycles, shares of the data sheet's rates) or are
launches, which are much the same everywhere, so that a fit on one GPU says something about another.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.errors import InputError
from planner.operators.attention_work import (
    Calls,
    Floats,
    Ints,
    Mask,
    Schedule,
    Work,
    ceil_div,
    decode_work,
    prefill_work,
)
from planner.operators.sheet import GpuSheet

# any                   every call
# over-256              heads wider than 256
# over-256-or-windowed  those, and heads of 256 under a window
# packed-heads          decode of a group of 2 to 32 query heads, enough of it to fill a quarter of the SMs
Form = Literal["any", "over-256", "over-256-or-windowed", "packed-heads"]

# The cache's append works with one thread an element of a token's keys, 512 at the most (vLLM's reshape_and_cache).
_APPEND_THREADS = 512


@dataclass(frozen=True, slots=True)
class Serves:
    """The calls that a kernel is the one for: a form, and types in bits, 0 where any."""

    form: Form
    kv_bits: int = 0
    compute_bits: int = 0


@dataclass(frozen=True, slots=True)
class Append:
    """Writing the new keys and values into the cache: seconds a token with 512 threads, and the traffic's multiple.

    With fewer threads a token takes less, by the `narrow`-th power of their share: more tokens fit an SM.
    """

    token_s: float
    narrow: float
    traffic: float

    def latency_s(self, sheet: GpuSheet, calls: Calls) -> Floats:
        tokens = calls.batch * calls.prompt
        share = np.minimum(calls.kv_heads * calls.head_dim, _APPEND_THREADS) / _APPEND_THREADS
        # Read at 16 bits, written at the cache's.
        moved = tokens * calls.kv_bytes_per_token * (16 / calls.kv_bits + 1)
        latency_s: Floats = tokens * self.token_s * share**self.narrow + self.traffic * moved / sheet.memory_bytes_per_s
        return latency_s


@dataclass(frozen=True, slots=True)
class DecodeKernel:
    """One kernel of decode attention and the few figures fitted to it.

    launch_s              of an empty step: attention and append
    extra_launch_s        of every further kernel: combining splits, copying queries in and output out
    sequence_s            of one more sequence
    split_sequence_s      of one more where the kernel can split
    item_cycles           of a tile before and after its blocks, plus ..._per_dim for each element of a head
    row_cycles_per_dim    of one more query row, for each element of a head
    key_cycles            of a key in a tile, plus ..._per_dim for each element of a head and ..._per_row for each row
    resident              tiles an SM works on at once; `alone` is the time of one of them that has the SM to itself
    partial_s_per_dim     of writing and combining one split, for each element of a head
    memory_share          of the data sheet's bandwidth that is reached
    l2_rate               of the second-level cache, over the memory's; `l2_share` of it holds what is read again,
                          and `l2_sharpness` how suddenly hits end beyond that
    overlap               of SMs and memory, as the exponent of a norm: 1 adds them, many takes the longer
    """

    name: str
    serves: Serves
    schedule: Schedule
    resident: int
    append: Append
    launch_s: float
    extra_launch_s: float
    sequence_s: float
    split_sequence_s: float
    item_cycles: float
    item_cycles_per_dim: float
    row_cycles_per_dim: float
    key_cycles: float
    key_cycles_per_dim: float
    key_cycles_per_row: float
    alone: float
    partial_s_per_dim: float
    memory_share: float
    l2_rate: float
    l2_share: float
    l2_sharpness: float
    overlap: float

    def work(self, sheet: GpuSheet, calls: Calls) -> Work:
        return decode_work(calls, self.schedule, sheet.sm_count)

    def latency_s(self, sheet: GpuSheet, calls: Calls, work: Work) -> Floats:
        """Seconds of each call; `work` is what `work()` gives for it, apart so that a fit computes it once."""
        dim = calls.head_dim
        item_s = self.item_cycles + (self.item_cycles_per_dim + self.row_cycles_per_dim * work.rows) * dim
        item_s = item_s / sheet.boost_hz
        key_s = self.key_cycles + self.key_cycles_per_dim * dim + self.key_cycles_per_row * work.rows
        key_s = key_s / sheet.boost_hz
        blocks_s = np.ceil(work.longest / work.splits) * work.block_keys * key_s
        items = work.units * work.tiles * work.splits
        waves = self._waves(items, sheet.sm_count)
        sm_s = ceil_div(items, sheet.sm_count) * item_s + waves * blocks_s
        memory_s = self._memory_s(sheet, calls, work)
        partial_s = np.where(work.splits > 1, self.partial_s_per_dim * items * dim, 0)
        launches = (work.splits > 1) + 2.0 * work.copies
        latency_s: Floats = (
            self.launch_s
            + self.extra_launch_s * launches
            + (self.sequence_s + self.split_sequence_s * work.may_split) * calls.batch
            + self.append.latency_s(sheet, calls)
            + partial_s
            + _overlapped(sm_s, memory_s, self.overlap)
        )
        return latency_s

    def _waves(self, items: Ints, sm_count: int) -> Floats:
        """Times of one tile's blocks that the busiest SM takes; tiles side by side on an SM take turns."""
        if self.resident == 1:
            return ceil_div(items, sm_count).astype(np.float64)
        full = self.resident * ceil_div(items, self.resident * sm_count)
        return np.where(items <= sm_count, self.alone, full)

    def _memory_s(self, sheet: GpuSheet, calls: Calls, work: Work) -> Floats:
        held = calls.kv_bytes
        # Where a group is not packed, each of its heads reads the same keys, once from memory.
        tile_group = calls.batch * calls.kv_heads
        reads = held * np.maximum(work.units / tile_group, 1)
        hit = 1 / (1 + (held / (self.l2_share * sheet.l2_bytes)) ** self.l2_sharpness)
        memory = held * (1 - hit) + (2 + 4 * work.copies) * calls.query_bytes
        cached = reads - held * (1 - hit)
        rate = sheet.memory_bytes_per_s
        seconds: Floats = memory / (self.memory_share * rate) + cached / (self.l2_rate * rate)
        return seconds


@dataclass(frozen=True, slots=True)
class PrefillKernel:
    """One kernel of prefill attention and the few figures fitted to it.

    launch_s, extra_launch_s, sequence_s, append, memory_share and overlap are as in DecodeKernel; token_s is of one
    more token of a prompt.

    item_cycles           of a tile before and after its blocks, plus row_cycles_per_dim for a row's element
    tensor_share          of the tensor cores' rate at which the products of a block run
    softmax_cycles        of an element of a block's scores
    small_tile            the time of an element in a tile of 64 rows, over that in a full one
    serial                the same where products and softmax of a tile take turns
    tail                  of the longest tile that the last wave leaves the other SMs idle
    alone                 the time of a tile where SMs have at most one each, over that among many
    partial_traffic       of the splits' partial outputs, over their bytes
    throttle              share by which sustained work slows down as the clock falls, half of it by throttle_s
    """

    name: str
    serves: Serves
    schedule: Schedule
    append: Append
    launch_s: float
    extra_launch_s: float
    sequence_s: float
    token_s: float
    item_cycles: float
    row_cycles_per_dim: float
    tensor_share: float
    softmax_cycles: float
    small_tile: float
    serial: float
    tail: float
    alone: float
    partial_traffic: float
    memory_share: float
    overlap: float
    throttle: float
    throttle_s: float

    def work(self, sheet: GpuSheet, calls: Calls) -> Work:
        return prefill_work(calls, self.schedule, sheet.sm_count)

    def latency_s(self, sheet: GpuSheet, calls: Calls, work: Work) -> Floats:
        """Seconds of each call; `work` is what `work()` gives for it, apart so that a fit computes it once."""
        item_s, block_s = self._tile_s(sheet, calls, work)
        longest_s = self.alone * (item_s + np.ceil(work.longest / work.splits) * block_s)
        items = work.units * work.tiles * work.splits
        mean_s = (items * item_s + work.units * work.blocks * block_s) / sheet.sm_count
        sm_s = np.where(items <= sheet.sm_count, longest_s, np.maximum(longest_s, mean_s + self.tail * longest_s))
        sm_s = sm_s * (1 + self.throttle * sm_s / (sm_s + self.throttle_s))
        # Partial outputs are 32 bits, written and read.
        partial = np.where(work.splits > 1, 4 * calls.query_bytes * work.splits, 0)
        read = calls.kv_bytes + 2 * calls.query_bytes
        memory_s = (read + self.partial_traffic * partial) / (self.memory_share * sheet.memory_bytes_per_s)
        latency_s: Floats = (
            self.launch_s
            + self.extra_launch_s * work.may_split
            + self.sequence_s * calls.batch
            + self.token_s * calls.batch * calls.prompt
            + self.append.latency_s(sheet, calls)
            + _overlapped(sm_s, memory_s, self.overlap)
        )
        return latency_s

    def _tile_s(self, sheet: GpuSheet, calls: Calls, work: Work) -> tuple[Floats, Floats]:
        """Seconds of a tile without its blocks, and of a block."""
        item_s = (self.item_cycles + self.row_cycles_per_dim * work.rows * calls.head_dim) / sheet.boost_hz
        fp8 = self.serves.compute_bits == 8 and "fp8" in dict(sheet.flop_per_s)
        sm_flop_per_s = self.tensor_share * sheet.rate("fp8" if fp8 else "bf16") / sheet.sm_count
        element_s = 4 * calls.head_dim / sm_flop_per_s + self.softmax_cycles / sheet.boost_hz
        small = np.where((work.tile_rows == 64) & (self.schedule != "fa2"), self.small_tile, 1)
        small = small * np.where(work.serial, self.serial, 1)
        return item_s, small * work.tile_rows * work.block_keys * element_s


@dataclass(frozen=True, slots=True)
class AttentionModel:
    """A framework's attention on a GPU: its kernels, each serving some calls; of several that do, the first.

    A call in a type that no kernel serves goes to the first kernel of its form, at that kernel's pace a key.
    `decodes_single_tokens` is whether a prompt of one token with nothing cached is a decode step as well.
    """

    decodes_single_tokens: bool
    decode: tuple[DecodeKernel, ...]
    prefill: tuple[PrefillKernel, ...]

    def decode_s(
        self,
        sheet: GpuSheet,
        batch: ArrayLike,
        q_heads: ArrayLike,
        kv_heads: ArrayLike,
        head_dim: ArrayLike,
        context: ArrayLike,
        kv_bits: ArrayLike,
        window: ArrayLike = 0,
    ) -> NDArray[np.float64]:
        """Seconds of a decode step of one layer: `batch` sequences of `context` tokens, the new one included.

        Arguments are numbers or arrays that broadcast, and so is the result. `window` is how many tokens a query sees,
        0 for all. InputError where a size is not positive or the heads do not share KV heads evenly.
        """
        before = np.asarray(context) - 1
        calls, shape = _calls(batch, q_heads, kv_heads, head_dim, 1, before, kv_bits, 16, window)
        return _latency_s(self.decode, sheet, calls).reshape(shape)

    def prefill_s(
        self,
        sheet: GpuSheet,
        batch: ArrayLike,
        q_heads: ArrayLike,
        kv_heads: ArrayLike,
        head_dim: ArrayLike,
        prompt: ArrayLike,
        prefix: ArrayLike,
        kv_bits: ArrayLike,
        window: ArrayLike = 0,
        compute_bits: ArrayLike = 16,
    ) -> NDArray[np.float64]:
        """Seconds of one layer's causal attention of `prompt` new tokens a sequence after `prefix` cached ones.

        As decode_s. `compute_bits` is 8 where queries are fp8 as well as keys.
        """
        calls, shape = _calls(batch, q_heads, kv_heads, head_dim, prompt, prefix, kv_bits, compute_bits, window)
        return self.latency_s(sheet, calls).reshape(shape)

    def latency_s(self, sheet: GpuSheet, calls: Calls) -> Floats:
        """Seconds of each call, whose windows are 0 where they hold every key."""
        latency_s = np.empty(calls.batch.shape)
        step = self.steps(calls)
        latency_s[step] = _latency_s(self.decode, sheet, calls.take(step))
        latency_s[~step] = _latency_s(self.prefill, sheet, calls.take(~step))
        return latency_s

    def steps(self, calls: Calls) -> Mask:
        """Which calls the kernels of decode take."""
        steps: Mask = (calls.prompt == 1) & ((calls.prefix > 0) | self.decodes_single_tokens)
        return steps


K = TypeVar("K", DecodeKernel, PrefillKernel)


def served(kernels: tuple[K, ...], calls: Calls, sheet: GpuSheet) -> Iterator[tuple[K, Mask]]:
    """Every kernel with the rows it is the one for; InputError where a row is left without."""
    left = np.ones(calls.batch.shape, np.bool_)
    rows = [np.zeros_like(left) for _ in kernels]
    for typed in (True, False):
        for number, kernel in enumerate(kernels):
            mine = left & _formed(kernel.serves.form, calls, sheet)
            if typed:
                mine &= _of(kernel.serves.kv_bits, calls.kv_bits) & _of(kernel.serves.compute_bits, calls.compute_bits)
            left &= ~mine
            rows[number] |= mine
    if left.any():
        raise InputError(f"{sheet.name}: no attention kernel serves head_dim {calls.head_dim[left][0]}")
    return ((kernel, mine) for kernel, mine in zip(kernels, rows, strict=True) if mine.any())


def _latency_s(kernels: tuple[K, ...], sheet: GpuSheet, calls: Calls) -> Floats:
    latency_s = np.empty(calls.batch.shape)
    for kernel, rows in served(kernels, calls, sheet):
        some = calls.take(rows)
        latency_s[rows] = kernel.latency_s(sheet, some, kernel.work(sheet, some))
    return latency_s


def _of(bits: int, found: Ints) -> Mask:
    """Which rows have these bits, all of them where bits is 0."""
    matches: Mask = (found == bits) | (bits == 0)
    return matches


def _formed(form: Form, calls: Calls, sheet: GpuSheet) -> Mask:
    """Which calls have a form."""
    if form == "over-256":
        return calls.head_dim > 256
    if form == "over-256-or-windowed":
        wide: Mask = (calls.head_dim > 256) | ((calls.head_dim == 256) & (calls.window > 0))
        return wide
    if form == "packed-heads":
        # As TensorRT-LLM decides between XQA and its masked multi-head kernel: four blocks a SM would fill it, where a
        # long context counts once for every 128 tokens.
        blocks = calls.batch * calls.kv_heads * np.maximum(calls.context // 128, 1)
        packed: Mask = (calls.group > 1) & (calls.group <= 32) & (4 * blocks >= sheet.sm_count)
        return packed
    return np.ones(calls.batch.shape, np.bool_)


def _overlapped(a: Floats, b: Floats, power: float) -> Floats:
    """Two times side by side: their sum at power 1, the longer at an infinite one."""
    longer = np.maximum(a, b)
    total: Floats = longer * ((a / longer) ** power + (b / longer) ** power) ** (1 / power)
    return total


def _calls(
    batch: ArrayLike,
    q_heads: ArrayLike,
    kv_heads: ArrayLike,
    head_dim: ArrayLike,
    prompt: ArrayLike,
    prefix: ArrayLike,
    kv_bits: ArrayLike,
    compute_bits: ArrayLike,
    window: ArrayLike,
) -> tuple[Calls, tuple[int, ...]]:
    """The calls, flat, and the shape their arguments broadcast to; InputError where one makes no sense."""
    given = (batch, q_heads, kv_heads, head_dim, prompt, prefix, kv_bits, compute_bits, window)
    arrays = np.broadcast_arrays(*(np.asarray(values, np.int64) for values in given))
    calls = Calls(*(np.ravel(values) for values in arrays))
    for name, least in _LEAST.items():
        values: Ints = getattr(calls, name)
        if (values < least).any():
            raise InputError(f"attention: {name} is {values.min()}; it must be at least {least}")
    uneven = calls.q_heads % calls.kv_heads != 0
    if uneven.any():
        q, kv = calls.q_heads[uneven][0], calls.kv_heads[uneven][0]
        raise InputError(f"attention: {q} query heads do not share {kv} KV heads evenly")
    # A window that holds every key is none.
    open_window = np.where(calls.window < calls.context, calls.window, 0)
    return replace(calls, window=open_window), arrays[0].shape


_LEAST = {
    "batch": 1,
    "q_heads": 1,
    "kv_heads": 1,
    "head_dim": 1,
    "prompt": 1,
    "prefix": 0,
    "kv_bits": 1,
    "compute_bits": 1,
    "window": 0,
}
