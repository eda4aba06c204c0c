"""How long a matrix product takes on a GPU, from its data sheet and a few parameters fitted to measured ones.

A product [m, k] x [k, n] is cut into tiles, and each tile's k into splits. Multiprocessors take tiles in waves; a wave
lasts as long as its tensor work or the loads that feed it, whichever is longer, and whole waves overlap with reading
the weights from memory. Filling a tile's pipeline and writing the tile out overlap with nothing. Libraries choose
the tile by rules of their own: the latency is the geometric mean over tiles and splits, weighted steeply towards the
fastest. Tile and wave quantisation as in NVIDIA's "Matrix Multiplication Background User's Guide", section 3.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.errors import InputError
from planner.operators.sheet import GpuSheet

Floats = NDArray[np.float64]

_SPLITS = (1, 2, 3, 4, 6, 8, 12)
_SHORTEST_SPLIT = 128
_K_STEP = 64
_ALIGNED_ROWS = 16
_REFERENCE_TILE = 128 * 128
# Rows computed at once: their arrays of one number a row and variant then stay in a core's cache.
_CHUNK = 512


@dataclass(frozen=True, slots=True)
class Kind:
    """The number formats of a product: its stored weights, its activations, and the type it is multiplied in.

    `quantised` activations arrive in 16 bits and are rounded by a pass of their own, which the latency includes;
    `unpacked` weights are widened to the multiplied type inside the kernel, again for every tile.
    """

    weight_bits: int
    activation_bits: int
    multiplied: str
    quantised: bool = False
    unpacked: bool = False


KINDS: Mapping[str, Kind] = {
    "bf16": Kind(16, 16, "bf16"),
    "fp8": Kind(8, 8, "fp8", quantised=True),
    "fp8_block": Kind(8, 8, "fp8", quantised=True),
    "int8": Kind(8, 8, "int8"),
    "int8_wo": Kind(8, 16, "bf16", unpacked=True),
    "int4_wo": Kind(4, 16, "bf16", unpacked=True),
    "fp4": Kind(4, 4, "fp4", quantised=True),
}


@dataclass(frozen=True, slots=True)
class Generation:
    """What a generation of GPUs does differently from another, and its data sheets do not say.

    `tiles` are rows of n by rows of m. With a `column_step`, tiles are made as narrow along m as their number allows,
    in such steps. `multicast` is how many multiprocessors share one load. `stream_share` is the share of the data
    sheet's bandwidth that streaming kernels reach: an assumption by the kind of memory, in no data sheet.
    """

    tiles: tuple[tuple[int, int], ...]
    column_step: int
    multicast: int
    stream_share: float


# Tiles of CUTLASS's and cuBLAS's mma.sync kernels: fixed.
_MMA_TILES = (
    *((256, 128), (128, 256), (128, 128), (256, 64), (64, 256), (128, 64), (64, 128), (64, 64)),
    *((128, 32), (64, 32), (32, 64), (32, 32), (128, 16), (64, 16)),
)
# Of their wgmma kernels: the narrower side in steps of 8, and loads shared by clusters of two.
_WGMMA_TILES = (
    *((256, 128), (128, 256), (192, 192), (192, 128), (128, 192), (128, 128), (256, 64), (64, 256)),
    *((64, 192), (128, 64), (64, 128), (64, 64), (128, 32), (64, 32), (64, 16)),
)
_HBM2E = Generation(_MMA_TILES, column_step=0, multicast=1, stream_share=0.86)
_GDDR6 = Generation(_MMA_TILES, column_step=0, multicast=1, stream_share=0.9)
_HBM3 = Generation(_WGMMA_TILES, column_step=8, multicast=2, stream_share=0.91)
_STACKED_DIES = Generation(_MMA_TILES, column_step=0, multicast=1, stream_share=0.8)
GENERATIONS: Mapping[str, Generation] = {
    "sm_80": _HBM2E,
    "sm_86": _GDDR6,
    "sm_89": _GDDR6,
    "sm_90": _HBM3,
    "sm_100": _HBM3,
    "gfx942": _STACKED_DIES,
    "gfx950": _STACKED_DIES,
}
_UNKNOWN = _GDDR6


@dataclass(frozen=True, slots=True)
class GemmModel:
    """The fitted parameters of one library's products of one kind, in units that carry over to another GPU.

    Times on the chip are in thousands of its boost clocks. Shares are of what the data sheet gives, or of what
    streaming kernels reach where the parameter is about reading memory.
    """

    launch_kclocks: float  # before the first wave and after the last
    flop_time: float  # of tensor work, over the data sheet's time, in tiles of infinite size
    edge_time: float  # added to it per 64 rows over the tile's rows and per 64 columns over its columns
    ragged_time: float  # added to it where m is no multiple of 16, which vectorised stores and scales want
    load_bytes_per_clock: float  # into one multiprocessor, tiles of both operands together
    fill_kclocks: float  # of one wave: filling the pipeline
    epilogue_kclocks: float  # of one wave, per 128 x 128 outputs a tile
    wave_softness: float  # 0: a part of a wave takes as long as a whole; 1: work spreads evenly
    read_share: float  # of streaming bandwidth, reading weights
    write_share: float  # of memory bandwidth, writing outputs
    cached_rate: float  # reading weights that stay in the second-level cache, over memory bandwidth
    cached_share: float  # of the second-level cache that weights may stay in
    reduce_kclocks: float  # adding up splits
    reduce_rate: float  # of the splits' traffic, over memory bandwidth
    hot_share: float  # by which tensor work slows as the chip runs into its power limit
    hot_s: float  # after this long, half of it
    choice: float  # how far above the fastest, as a share, choices lie; 0: tiles follow from m alone, without splits
    unpack_per_clock: float  # weights that one multiprocessor widens, where they are stored narrow
    quantise_rate: float  # of the activations' own pass, over memory bandwidth, where they are quantised
    issue_s: float  # of the host, per product: what hides everything shorter; 0 where graphs are replayed

    def latency_s(
        self,
        sheet: GpuSheet,
        kind: str,
        m: ArrayLike,
        n: ArrayLike,
        k: ArrayLike,
        weight_copies: float = np.inf,
    ) -> Floats:
        """Seconds of each product [m, k] x [k, n]; sizes broadcast, and the result has their shape.

        `weight_copies` says how many weights of this size are read in turn before these are read again: infinitely
        many in a model, whose weights never stay in a cache, and few in a benchmark.

        Raises InputError for a kind or a size without a latency, or one that the sheet has no throughput for.
        """
        if kind not in KINDS:
            raise InputError(f"no model of {kind} products; known: {', '.join(KINDS)}")
        rate = sheet.rate(KINDS[kind].multiplied)
        sizes = np.broadcast_arrays(*(np.asarray(size, np.float64) for size in (m, n, k)))
        if not all((size >= 1).all() for size in sizes):
            raise InputError(f"a product needs m, n and k of at least 1, found {min(size.min() for size in sizes):g}")
        flat = [size.ravel() for size in sizes]
        latency_s = np.empty(flat[0].size)
        for start in range(0, latency_s.size, _CHUNK):
            rows = slice(start, start + _CHUNK)
            shape = _Shape(flat[0][rows], flat[1][rows], flat[2][rows], KINDS[kind], rate, weight_copies)
            latency_s[rows] = self._chosen_s(sheet, shape)
        return latency_s.reshape(sizes[0].shape)

    def _chosen_s(self, sheet: GpuSheet, shape: "_Shape") -> Floats:
        """The latency of what the library chooses among tiles and splits.  [rows]"""
        generation = GENERATIONS.get(sheet.architecture, _UNKNOWN)
        tile = _tiles(generation, shape.m) if self.choice else _one_tile(shape.m)
        length = np.ceil(shape.k / tile.splits / _K_STEP) * _K_STEP  # [variants, rows] of k in a split
        parts = np.ceil(shape.n / tile.rows) * tile.count * tile.splits / sheet.sm_count
        waves = (1 - self.wave_softness) * np.ceil(parts) + self.wave_softness * np.maximum(parts, 1)

        inside_s = np.maximum(
            self._tensor_s(sheet, shape, tile, length), self._load_s(sheet, shape, tile, length, generation)
        )
        memory_s = self._memory_s(sheet, shape, generation)
        outside_s = waves * (self.fill_kclocks + self.epilogue_kclocks * tile.rows * tile.columns / _REFERENCE_TILE)
        latency_s = _overlapped(waves * inside_s, memory_s) + (outside_s + self.launch_kclocks) * 1e3 / sheet.boost_hz

        # Splits are added up by a kernel of its own, over partial sums in 32 bits that are written and read once.
        sums_s = 8 * shape.m * shape.n / (self.reduce_rate * sheet.memory_bytes_per_s)
        latency_s += (tile.splits > 1) * (self.reduce_kclocks * 1e3 / sheet.boost_hz + tile.splits * sums_s)

        chosen_s = self._mean_s(latency_s, shape, tile) if self.choice else latency_s[0]
        return _overlapped(chosen_s + self._quantise_s(sheet, shape), np.float64(self.issue_s))

    def _mean_s(self, latency_s: Floats, shape: "_Shape", tile: "_Tiles") -> Floats:
        """The geometric mean of what is on offer, weighted steeply towards the fastest.  [rows]"""
        logs = np.log(latency_s)
        offered = (tile.splits == 1) | (shape.k >= tile.splits * _SHORTEST_SPLIT)
        above = np.where(offered, logs, np.inf)
        weights = np.exp((above.min(0) - above) / self.choice)
        mean_s: Floats = np.exp((weights * logs).sum(0) / weights.sum(0))
        return mean_s

    def _tensor_s(self, sheet: GpuSheet, shape: "_Shape", tile: "_Tiles", length: Floats) -> Floats:
        """Arithmetic of one wave: a tile on every multiprocessor.  [variants, rows]"""
        ideal_s = 2 * shape.m * shape.n * shape.k / shape.flop_per_s
        hot = 1 + self.hot_share * ideal_s / (ideal_s + self.hot_s)
        ragged = self.ragged_time * (shape.m % _ALIGNED_ROWS > 0)
        slow = self.flop_time + ragged + self.edge_time * (64 / tile.rows + 64 / tile.columns)
        work_s = tile.rows * tile.columns * length * slow * (2 * sheet.sm_count / shape.flop_per_s * hot)
        if shape.kind.unpacked:
            work_s += tile.rows * length / (self.unpack_per_clock * sheet.boost_hz)
        return work_s

    def _load_s(
        self, sheet: GpuSheet, shape: "_Shape", tile: "_Tiles", length: Floats, generation: Generation
    ) -> Floats:
        """Loads of one wave into one multiprocessor.  [variants, rows]"""
        row_bytes = tile.rows * shape.kind.weight_bits / 8 + tile.columns * shape.kind.activation_bits / 8
        return row_bytes * length / (self.load_bytes_per_clock * generation.multicast * sheet.boost_hz)

    def _memory_s(self, sheet: GpuSheet, shape: "_Shape", generation: Generation) -> Floats:
        """Memory traffic of the whole product.  [rows]"""
        weights = shape.n * shape.k * shape.kind.weight_bits / 8
        inputs = shape.m * shape.k * shape.kind.activation_bits / 8
        outputs = 2 * shape.m * shape.n
        # Reading copies in turn from a cache of random replacement keeps few of them once they outgrow it.
        kept = 1 / (1 + (shape.weight_copies * weights / (self.cached_share * sheet.l2_bytes)) ** 4)
        streaming = self.read_share * generation.stream_share
        # Inputs come from the kernel before, and small ones from the cache it left them in.
        read = weights * ((1 - kept) / streaming + kept / self.cached_rate)
        read += inputs * np.minimum(1, (inputs + outputs) / sheet.l2_bytes) / streaming
        return (read + outputs / self.write_share) / sheet.memory_bytes_per_s

    def _quantise_s(self, sheet: GpuSheet, shape: "_Shape") -> Floats:
        """The pass that rounds activations of 16 bits.  [rows]"""
        if not shape.kind.quantised:
            return np.zeros(shape.m.shape)
        read_and_written = shape.m * shape.k * (16 + shape.kind.activation_bits) / 8
        return read_and_written / (self.quantise_rate * sheet.memory_bytes_per_s)


@dataclass(frozen=True, slots=True, eq=False)
class _Shape:
    """A chunk of products of one kind.  m, n, k: [rows]"""

    m: Floats
    n: Floats
    k: Floats
    kind: Kind
    flop_per_s: float
    weight_copies: float


@dataclass(frozen=True, slots=True, eq=False)
class _Tiles:
    """What a library may choose from.  rows, splits: [variants, 1 or rows]; columns, their count: [variants, rows]"""

    rows: Floats
    columns: Floats
    count: Floats
    splits: Floats


def _tiles(generation: Generation, m: Floats) -> _Tiles:
    rows, columns, splits = _variants(generation.tiles)
    count = np.ceil(m / columns)
    if generation.column_step:
        columns = np.ceil(m / count / generation.column_step) * generation.column_step
    return _Tiles(rows, columns, count, splits)


def _one_tile(m: Floats) -> _Tiles:
    """128 x 128, and half of it along either side where few rows of activations leave it empty: vLLM's fp8 products.

    https://github.com/vllm-project/vllm, csrc/quantization, scaled_mm_sm90_fp8_dispatch.cuh
    """
    rows, columns = np.where(m <= 128, 64.0, 128.0), np.where(m <= 64, 64.0, 128.0)
    return _Tiles(rows[None], columns[None], np.ceil(m / columns)[None], np.ones((1, 1)))


@lru_cache
def _variants(tiles: tuple[tuple[int, int], ...]) -> tuple[Floats, Floats, Floats]:
    """Rows, columns and splits of every variant.  [variants, 1]"""
    every = np.array([(rows, columns, splits) for rows, columns in tiles for splits in _SPLITS], np.float64)
    return every[:, :1], every[:, 1:2], every[:, 2:]


def _overlapped(one: Floats, other: Floats | np.float64) -> Floats:
    """Two activities side by side: the longer, and near equality a little more."""
    latency: Floats = np.sqrt(np.sqrt(np.square(np.square(one)) + np.square(np.square(other))))
    return latency
