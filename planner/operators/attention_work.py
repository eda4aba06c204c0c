"""How attention kernels cut their work: tiles of query rows, blocks of keys, splits of a long context.

These are facts of published kernels, not fits: FlashAttention 2 and 3 (https://github.com/Dao-AILab/flash-attention and
vLLM's fork of it; BSD-3-Clause; Dao 2023, Shah et al. 2024) and what TensorRT-LLM documents of XQA. A tile is what one
thread block computes at a time: some rows of queries against all its keys, a block of keys at a time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# fa2          FlashAttention 2: packs a group into one tile only in decode without a window, splits only what is packed
# fa3          FlashAttention 3, its splits set by the device from the lengths it finds
# fa3-static   FlashAttention 3, its splits set by the host
# fill         one tile a KV head (a packed group), split until the SMs are full
# fill-heads   one tile a query head, split until the SMs are full
Schedule = Literal["fa2", "fa3", "fa3-static", "fill", "fill-heads"]

_FA2_MAX_SPLITS = 128
_FA2_RESIDENT = 2  # thread blocks an SM holds, which the split heuristic counts on
_FA3_MAX_SPLITS = 128
# Above it FlashAttention 3 launches its scheduler on more than one thread block, and gives up splitting.
_FA3_MAX_SPLIT_BATCH = 992
# vLLM replays graphs up to this many tokens, and allows 32 splits there whatever the shape.
_CAPTURED_TOKENS = 512
_CAPTURED_SPLITS = 32


@dataclass(frozen=True, slots=True, eq=False)
class Calls:
    """Attention calls, one a row: equally long arrays.

    `prompt` new tokens of every sequence attend to themselves and to `prefix` cached ones, causally; a decode step has
    a prompt of 1. `window` is how many keys a query sees, 0 for all of them.
    """

    batch: Ints
    q_heads: Ints
    kv_heads: Ints
    head_dim: Ints
    prompt: Ints
    prefix: Ints
    kv_bits: Ints
    compute_bits: Ints
    window: Ints

    def take(self, rows: Mask) -> "Calls":
        """The calls of some rows."""
        return Calls(*(getattr(self, name)[rows] for name in self.__slots__))

    @property
    def group(self) -> Ints:
        """Query heads a KV head serves."""
        return self.q_heads // self.kv_heads

    @property
    def context(self) -> Ints:
        return self.prefix + self.prompt

    @property
    def kv_bytes_per_token(self) -> Floats:
        """Bytes of keys and values that a token leaves in the cache."""
        return np.asarray(2 * self.kv_heads * self.head_dim * self.kv_bits / 8, np.float64)

    @property
    def kv_bytes(self) -> Floats:
        """Bytes of the keys and values that the queries see, each once."""
        reach = self.window + self.prompt - 1
        seen = np.where(self.window > 0, np.minimum(reach, self.context), self.context)
        return np.asarray(self.batch * seen * self.kv_bytes_per_token, np.float64)

    @property
    def query_bytes(self) -> Floats:
        """Bytes of the queries, as many as of the output: 16 bits each."""
        return np.asarray(2 * self.batch * self.prompt * self.q_heads * self.head_dim, np.float64)


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """The tiles of each call: equally long arrays.

    units       sequences times heads: each has `tiles` tiles
    rows        query rows of a tile that hold a query; `tile_rows` is its height
    blocks      blocks of `block_keys` keys over all tiles of a unit; `longest` in the longest of them
    splits      parts that each tile's blocks are divided over, by as many thread blocks
    may_split   whether the kernel is the one that can split, with a combining kernel behind it
    serial      whether the kernel does not overlap the products of a tile with its softmax
    copies      whether queries and output are copied to bring a group's rows together
    """

    units: Ints
    tiles: Ints
    rows: Floats
    tile_rows: Ints
    block_keys: Ints
    blocks: Floats
    longest: Floats
    splits: Ints
    may_split: Mask
    serial: Mask
    copies: Mask


def decode_work(calls: Calls, schedule: Schedule, sm_count: int) -> Work:
    """The work of decode steps: one query token a sequence."""
    group, packs = calls.group, calls.group > 1
    if schedule == "fill-heads":
        packs = np.zeros_like(packs)
    if schedule == "fa2":
        packs = packs & (calls.window == 0)
    tile_rows = np.full(group.shape, 64)
    tiles = np.where(packs, ceil_div(group, tile_rows), 1)
    units = calls.batch * np.where(packs, calls.kv_heads, calls.q_heads)
    block_keys = _decode_block_keys(calls, schedule)
    all_blocks = ceil_div(calls.context, block_keys)
    # A window's end falls anywhere in a block, so that it touches one more.
    seen = np.minimum(all_blocks, ceil_div(calls.window, block_keys) + 1)
    blocks = np.where(calls.window > 0, seen, all_blocks)
    splits = _decode_splits(calls, schedule, sm_count, units * tiles, packs, blocks, all_blocks)
    may_split = splits > 1
    if schedule == "fa3":
        may_split = (calls.batch <= _FA3_MAX_SPLIT_BATCH) & (_fa3_limit(calls, tiles, all_blocks, sm_count) > 1)
    return Work(
        units=units,
        tiles=tiles,
        rows=np.where(packs, group, 1) / tiles,
        tile_rows=tile_rows,
        block_keys=block_keys,
        blocks=(blocks * tiles).astype(np.float64),
        longest=blocks.astype(np.float64),
        splits=splits,
        may_split=may_split,
        serial=np.zeros(group.shape, np.bool_),
        # The transposed view of a single sequence, or of a single KV head, needs no copy.
        copies=(schedule == "fa2") & packs & (calls.kv_heads > 1) & (calls.batch > 1),
    )


def prefill_work(calls: Calls, schedule: Schedule, sm_count: int) -> Work:
    """The work of prompts of more than one token."""
    group, plain = calls.group, np.ones_like(calls.group)
    packed = plain
    if schedule in ("fa3", "fa3-static"):
        packed = group
    tile_rows, block_keys = _prefill_tile(calls, schedule, packed)
    units = calls.batch * calls.q_heads // packed
    tiles, blocks, longest = causal_blocks(calls, tile_rows / packed, block_keys)
    splits = plain
    if schedule == "fa3":
        all_blocks = ceil_div(calls.context, block_keys)
        limit = _fa3_limit(calls, ceil_div(calls.prompt * group, tile_rows), all_blocks, sm_count)
        splits = _fa3_splits(calls.batch, units * tiles, all_blocks, limit, sm_count)
    return Work(
        units=units,
        tiles=tiles,
        rows=calls.prompt * packed / tiles,
        tile_rows=tile_rows,
        block_keys=block_keys,
        blocks=blocks,
        longest=longest,
        splits=splits,
        may_split=splits > 1,
        serial=_serial(calls) if schedule in ("fa3", "fa3-static") else np.zeros(group.shape, np.bool_),
        copies=np.zeros(group.shape, np.bool_),
    )


def causal_blocks(calls: Calls, tile_tokens: Floats, block_keys: Ints) -> tuple[Ints, Floats, Floats]:
    """Tiles of a prompt, the blocks of keys that all of them visit, and those of the tile that visits most.

    tile_tokens, block_keys  [rows]  tokens of a tile (a fraction where a group is packed), keys of a block

    A tile visits every block that holds a key one of its queries sees: the causal triangle costs its staircase.
    """
    # Tiles of a packed group start at fractions of a token; 27,720 is a multiple of 1 to 12, so that few are rounded.
    unit = 27720
    shape = np.stack(
        [calls.prompt, calls.prefix, calls.window, np.rint(tile_tokens * unit).astype(np.int64), block_keys], axis=1
    )
    distinct, where = np.unique(shape, axis=0, return_inverse=True)
    counts = np.empty((len(distinct), 3))
    for i, (prompt, prefix, window, step, block) in enumerate(distinct.tolist()):
        tiles = -(-prompt * unit // step)
        number = np.arange(tiles, dtype=np.int64)
        end = np.minimum(-(-(number + 1) * step // unit), prompt) + prefix
        visited = -(-end // block)
        if window:
            visited -= np.maximum(number * step // unit + prefix - window + 1, 0) // block
        counts[i] = tiles, visited.sum(), visited.max()
    per_row = counts[where.ravel()]
    return per_row[:, 0].astype(np.int64), per_row[:, 1], per_row[:, 2]


def ceil_div(a: Ints, b: Ints | int) -> Ints:
    """a / b rounded up."""
    quotient: Ints = -(-a // b)
    return quotient


def _decode_block_keys(calls: Calls, schedule: Schedule) -> Ints:
    """Keys of a block in decode; they shrink as heads widen, to fit shared memory."""
    dim = calls.head_dim
    if schedule == "fa2":
        return np.select([dim <= 64, dim <= 128], [256, 128], 64)
    if schedule in ("fa3", "fa3-static"):
        wide = np.select([dim <= 64, dim <= 128, dim <= 192, dim <= 256], [192, 128, 96, 80], 64)
        # Of fp8, what the steps in measured latencies tell.
        narrow = np.select([dim <= 128, dim <= 192, dim <= 256], [160, 96, 80], 64)
        return np.where(calls.kv_bits == 8, narrow, wide)
    return np.full(dim.shape, 64)


def _prefill_tile(calls: Calls, schedule: Schedule, packed: Ints) -> tuple[Ints, Ints]:
    """Rows and keys of a tile in prefill."""
    dim, local = calls.head_dim, calls.window > 0
    if schedule == "fa2":
        return np.full(dim.shape, 64), np.select([dim <= 64, dim <= 128], [256, 128], 64)
    if schedule not in ("fa3", "fa3-static"):
        return np.full(dim.shape, 128), np.full(dim.shape, 128)
    fp8 = calls.kv_bits == 8
    rows = np.select([dim <= 64, dim <= 256], [192, 128], 64)
    # One group of warps instead of two or three where the prompt is short.
    rows = np.where((dim <= 128) & (calls.prompt * packed <= 64) & ~fp8, 64, rows)
    wide = np.select(
        [dim <= 64, dim <= 128, dim <= 192, dim <= 256],
        [np.where(local, 160, 128), 128, 96, np.where(local, 64, 80)],
        64,
    )
    # Of fp8, what the steps in measured latencies tell.
    narrow = np.select([dim <= 64, dim <= 128, dim <= 192], [160, np.where(local, 96, 224), 96], 64)
    return rows, np.where(fp8, narrow, wide)


def _serial(calls: Calls) -> Mask:
    """FlashAttention 3's tiles without overlap: fp8 heads of 256 from a paged cache, which leave it no registers."""
    serial: Mask = (calls.kv_bits == 8) & (calls.head_dim > 192)
    return serial


def _decode_splits(
    calls: Calls, schedule: Schedule, sm_count: int, tiles: Ints, packs: Mask, blocks: Ints, all_blocks: Ints
) -> Ints:
    """Parts that each tile's keys are divided over; `tiles` counts those of the whole call."""
    if schedule == "fa2":
        splits = _most_efficient(tiles, blocks, _fa2_choice, _FA2_RESIDENT * sm_count)
        return np.where(packs, splits, 1)
    if schedule == "fa3":
        limit = _fa3_limit(calls, ceil_div(calls.group, 64), all_blocks, sm_count)
        splits = _fa3_splits(calls.batch, tiles, all_blocks, limit, sm_count)
        return np.where(calls.window > 0, np.minimum(splits, blocks), splits)
    if schedule == "fa3-static":
        return _most_efficient(tiles, blocks, _fa3_choice, sm_count)
    return np.clip(sm_count // tiles, 1, np.maximum(blocks // 2, 1))


def _fa3_limit(calls: Calls, tiles: Ints, all_blocks: Ints, sm_count: int) -> Ints:
    """The most splits the host allows, which looks at one sequence only."""
    chosen = _most_efficient(calls.kv_heads * tiles, all_blocks, _fa3_choice, sm_count)
    return np.where(calls.batch * calls.prompt <= _CAPTURED_TOKENS, _CAPTURED_SPLITS, chosen)


def _fa3_splits(batch: Ints, tiles: Ints, all_blocks: Ints, limit: Ints, sm_count: int) -> Ints:
    """Splits such that the blocks of all tiles, a tenth more, spread over the SMs."""
    blocks_per_sm = np.ceil(tiles * all_blocks * 1.1 / sm_count).astype(np.int64)
    splits = np.clip(ceil_div(all_blocks, np.maximum(blocks_per_sm, 1)), 1, limit)
    return np.where(batch > _FA3_MAX_SPLIT_BATCH, 1, splits)


def _most_efficient(tiles: Ints, blocks: Ints, choice: Callable[[int, int, int], int], slots: int) -> Ints:
    """What a split heuristic of (tiles, blocks of each, slots) chooses, asked once a distinct pair."""
    distinct, where = np.unique(np.stack([tiles, blocks], axis=1), axis=0, return_inverse=True)
    chosen = np.array([choice(t, b, slots) for t, b in distinct.tolist()], np.int64)
    return chosen[where.ravel()]


def _fa2_choice(tiles: int, blocks: int, slots: int) -> int:
    """FlashAttention 2: the fewest splits within 85 % of the fullest last wave.

    >>> _fa2_choice(tiles=1, blocks=1024, slots=216), _fa2_choice(tiles=256, blocks=1024, slots=216)
    (114, 1)
    """
    most = min(_FA2_MAX_SPLITS, slots, blocks)
    if tiles >= 0.8 * slots or most == 1:
        return 1
    splits = np.arange(1, most + 1)
    waves = tiles * splits / slots
    parts = ceil_div(np.full(most, blocks), splits)
    # As many blocks a part as with one split fewer: nothing gained.
    useful = np.append(True, parts[1:] != parts[:-1])
    full = np.where(useful, waves / np.ceil(waves), 0)
    return int(splits[np.argmax(full >= 0.85 * full.max())])


def _fa3_choice(tiles: int, blocks: int, slots: int) -> int:
    """FlashAttention 3: the fewest splits within 95 % of the fullest last wave, none for few blocks.

    >>> _fa3_choice(tiles=8, blocks=512, slots=132), _fa3_choice(tiles=8, blocks=4, slots=132)
    (16, 1)
    """
    if tiles >= 0.8 * slots or blocks <= 4 or (blocks <= 8 and tiles >= 32):
        return 1
    splits = np.arange(1, min(_FA3_MAX_SPLITS, slots, blocks) + 1)
    waves = tiles * splits / slots
    full = np.where(blocks // splits < 4, 0.85, 1.0) * waves / np.ceil(waves)
    return int(splits[np.argmax(full >= 0.95 * full.max())])
