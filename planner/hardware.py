"""What a machine can do, in SI units, each figure with where it came from."""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, log
from typing import Literal

from planner.errors import InputError
from planner.measured import Curve, Machine, by_name, count
from planner.operators.gpu import GpuOperators

Provenance = Literal["measured", "fitted", "datasheet"]


@dataclass(frozen=True, slots=True)
class MemoryTier:
    """One memory: `hbm`, `dram` or `flash`, and how fast what lies in it reaches the compute units.

    For the fastest tier `read_bytes_per_s` is its own bandwidth; for the others it is the link's.
    `read_curve` holds (block bytes, bytes per second) where the rate depends on the size of a read.
    """

    name: str
    capacity_bytes: int
    read_bytes_per_s: float
    read_curve: tuple[tuple[int, float], ...] = ()

    def __post_init__(self) -> None:
        _positive(f"tier {self.name}: capacity_bytes", self.capacity_bytes)
        _positive(f"tier {self.name}: read_bytes_per_s", self.read_bytes_per_s)
        for block_bytes, rate in self.read_curve:
            _positive(f"tier {self.name}: read_curve block", block_bytes)
            _positive(f"tier {self.name}: read_curve rate", rate)
        if any(a >= b for (a, _), (b, _) in pairwise(self.read_curve)):
            raise InputError(f"tier {self.name}: read_curve needs its block sizes in rising order, each once")

    def bytes_per_s(self, block_bytes: float) -> float:
        """Rate of reads of one block size.

        Between the curve's points a read's seconds grow linearly with its bytes: a latency, then a transfer. A read
        smaller than the first point takes as long as that; beyond the last point the rate stays.

        >>> disk = MemoryTier("flash", 10**12, 4e9, ((4000, 1e9), (12000, 2e9)))
        >>> round(8000 / disk.bytes_per_s(8000) * 1e6, 6), disk.bytes_per_s(40), disk.bytes_per_s(1e9)
        (5.0, 10000000.0, 2000000000.0)

        A tier without a curve reads at one rate:

        >>> MemoryTier("dram", 10**12, 3e10).bytes_per_s(1)
        30000000000.0
        """
        curve = self.read_curve
        if not curve:
            return self.read_bytes_per_s
        at = bisect_left(curve, block_bytes, key=lambda point: point[0])
        if at == len(curve):
            return curve[-1][1]
        large, fast = curve[at]
        if at == 0:
            return fast * block_bytes / large
        small, slow = curve[at - 1]
        seconds = small / slow + (large / fast - small / slow) * (block_bytes - small) / (large - small)
        return block_bytes / seconds


Rates = tuple[tuple[float, float], ...]
"""(bits, elements per second) pairs."""


MEASURE_AGAIN = "measure it for the runtime you plan for: planner profile hardware --backend NAME"


@dataclass(frozen=True, slots=True)
class ProductTime:
    """Products with matrices of one kind (`float32`, `block4`, `exact4`, ...), measured whole as a runtime does them.

    points  (tokens, seconds for each number of the matrix), tokens rising
    """

    kind: str
    points: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        if not self.points or any(a >= b for (a, _), (b, _) in pairwise(self.points)):
            raise InputError(f"product_times.{self.kind}: points need their tokens in rising order, each once")
        for tokens, seconds in self.points:
            _positive(f"product_times.{self.kind}: tokens", tokens)
            _positive(f"product_times.{self.kind}: seconds for each number", seconds)

    def seconds(self, tokens: int) -> float:
        """Seconds for each number of a matrix that multiplies so many tokens, linear between points and beyond.

        >>> measured = ProductTime("block4", ((1, 1e-10), (11, 2e-10)))
        >>> f"{measured.seconds(1):.3g} {measured.seconds(6):.3g} {measured.seconds(21):.3g}"
        '1e-10 1.5e-10 3e-10'
        """
        if len(self.points) == 1 or tokens <= self.points[0][0]:
            return self.points[0][1]
        above = min(max(bisect_left(self.points, tokens, key=lambda p: p[0]), 1), len(self.points) - 1)
        (low, fast), (high, slow) = self.points[above - 1], self.points[above]
        return max(fast + (slow - fast) * (tokens - low) / (high - low), fast)


@dataclass(frozen=True, slots=True)
class AttentionTime:
    """Attention over a cache of one width by heads of one size, measured whole as a runtime does it.

    decode, prefill  (slots of the cache, seconds for a multiplication of a query's number with a cached one), slots
                     rising: when one token is decoded, and when a chunk of a prompt is read
    """

    bits: int
    head_dim: int
    decode: tuple[tuple[int, float], ...]
    prefill: tuple[tuple[int, float], ...]

    def __post_init__(self) -> None:
        where = f"attention_times.{self.bits}, heads of {self.head_dim}"
        _positive(f"{where}: head_dim", self.head_dim)
        for name, points in (("decode", self.decode), ("prefill", self.prefill)):
            if not points or any(a >= b for (a, _), (b, _) in pairwise(points)):
                raise InputError(f"{where}: {name} needs its slots in rising order, each once")
            for _, seconds in points:
                _positive(f"{where}: {name}: seconds", seconds)


@dataclass(frozen=True, slots=True)
class HardwareProfile:
    """A target: tiers fastest first, matrix throughput by type, and the fixed costs of a step.

    `float_bits` is the width dense weights and caches have on it (16 on a GPU, 32 where the CPU runtime computes in
    float32). `matmul_flop_per_s` maps a compute type (fp32, fp16, bf16, int8) to throughput. A runtime that expands
    packed numbers before computing pays `expand_weights_per_s` and `expand_kv_per_s` (elements per second by bits);
    empty where the kernel does it within the read. `layer_overhead_s` is what a layer takes however little it computes,
    attention aside; each class of heads that attends in one call adds `kernel_overhead_s`. Where the runtime's products
    and attention were measured whole, `product_times` and `attention_times` take the place of all of these rates.

    `curves` is what was timed on a `machine`, figure by figure with its spread; all the rest follows from it where the
    profile was measured here. `efficiency` is the share of the stated bandwidths and throughputs that real kernels
    reach: 1 where they were measured. `error` is the relative half-width of a predicted time.
    """

    name: str
    kind: Literal["cpu", "gpu"]
    float_bits: Literal[16, 32]
    tiers: tuple[MemoryTier, ...]
    matmul_flop_per_s: tuple[tuple[str, float], ...]
    layer_overhead_s: float
    step_overhead_s: float
    kernel_overhead_s: float
    provenance: Provenance
    error: float
    sources: tuple[str, ...]
    date: str
    expand_weights_per_s: Rates = ()
    expand_kv_per_s: Rates = ()
    product_times: tuple[ProductTime, ...] = ()
    attention_times: tuple[AttentionTime, ...] = ()
    notes: tuple[str, ...] = ()
    efficiency: float = 1.0
    operators: GpuOperators | None = None
    machine: Machine | None = None
    curves: tuple[Curve, ...] = ()

    def __post_init__(self) -> None:
        if not self.tiers:
            raise InputError(f"target {self.name}: has no memory tier")
        names = [tier.name for tier in self.tiers]
        if len(set(names)) != len(names):
            raise InputError(f"target {self.name}: tiers {', '.join(names)}; each name once")
        for kind, rate in self.matmul_flop_per_s:
            _positive(f"target {self.name}: matmul_flop_per_s.{kind}", rate)
        for bits, rate in (*self.expand_weights_per_s, *self.expand_kv_per_s):
            _positive(f"target {self.name}: elements expanded per second at {bits:g} bits", rate)
        for name in ("layer_overhead_s", "step_overhead_s", "kernel_overhead_s", "error"):
            if not (isfinite(value := getattr(self, name)) and value >= 0):
                raise InputError(f"target {self.name}: {name}: found {value}; must be 0 or more")
        if not 0 < self.efficiency <= 1:
            raise InputError(f"target {self.name}: efficiency: found {self.efficiency}; must be above 0 and at most 1")
        by_name(self.curves)
        if self.machine is not None and self.machine.figures != count(self.curves):
            raise InputError(
                f"target {self.name}: curves hold {count(self.curves)} of the {self.machine.figures} figures that were"
                " measured; the file was cut short: measure again"
            )
        self.flop_per_s(self.float_bits)

    @property
    def pessimism(self) -> float:
        """How many times its prediction a time may be: a limit on seconds is kept at that end."""
        return 1 + self.error

    @property
    def fastest(self) -> MemoryTier:
        return self.tiers[0]

    def tier(self, name: str) -> MemoryTier:
        for tier in self.tiers:
            if tier.name == name:
                return tier
        raise InputError(f"target {self.name} has no tier {name!r}; it has {', '.join(t.name for t in self.tiers)}")

    def flop_per_s(self, bits: int) -> float:
        """Matrix throughput of the type dense numbers of this width compute in."""
        rates = dict(self.matmul_flop_per_s)
        for name in ("fp32",) if bits == 32 else ("bf16", "fp16"):
            if name in rates:
                return rates[name]
        raise InputError(f"target {self.name}: matmul_flop_per_s has no rate for {bits}-bit floating point")

    def product_time(self, kind: str) -> ProductTime | None:
        """What was measured of products of a kind; None where products were not measured whole."""
        if not self.product_times:
            return None
        for each in self.product_times:
            if each.kind == kind:
                return each
        known = ", ".join(each.kind for each in self.product_times)
        raise InputError(f"target {self.name}: product_times has no {kind}; it has {known}; {MEASURE_AGAIN}")

    def attention_time(self, bits: float, head_dim: int) -> AttentionTime | None:
        """What was measured of attention at a width, by heads of the size nearest in ratio; None where attention was
        not measured whole."""
        if not self.attention_times:
            return None
        alike = [each for each in self.attention_times if each.bits == bits]
        if alike:
            return min(alike, key=lambda each: abs(log(each.head_dim / head_dim)))
        known = ", ".join(str(bits) for bits in dict.fromkeys(each.bits for each in self.attention_times))
        raise InputError(
            f"target {self.name}: attention_times has none of {bits:g} bits; it has {known}; {MEASURE_AGAIN}"
        )

    def expand_weights_s(self, elements: float, bits: float) -> float:
        """Seconds to expand that many packed weights before computing; 0 where they are stored as computed."""
        return self._expand_s(self.expand_weights_per_s, elements, bits)

    def expand_kv_s(self, elements: float, bits: float) -> float:
        """Seconds to expand that many packed keys or values before computing; 0 where they are stored as computed."""
        return self._expand_s(self.expand_kv_per_s, elements, bits)

    def _expand_s(self, rates: Rates, elements: float, bits: float) -> float:
        if not rates or bits >= self.float_bits:
            return 0.0
        # A width without a rate of its own (native 4.5-bit blocks, say) goes at the nearest's, the slower of two.
        _, rate = min(rates, key=lambda pair: (abs(pair[0] - bits), pair[1]))
        return elements / rate


def _positive(what: str, value: float) -> None:
    if not (isfinite(value) and value > 0):
        raise InputError(f"{what}: found {value}; must be a positive number")
