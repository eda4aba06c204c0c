"""What this machine can do, measured: memory, matrix products, flash, and the pieces of a runtime that runs here.

Takes about half a minute. Every figure is the median of repeats; how far they spread, and what else the machine was
doing, is written into the profile's notes.
"""

import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import psutil  # type: ignore[import-untyped,unused-ignore]
import torch

from planner.executor import Progress, RuntimeProbe
from planner.hardware import AttentionTime, HardwareProfile, MemoryTier, ProductTime, Rates
from profiles.flash import Flash, measure_flash
from profiles.timing import NOISY, timed

EXPAND_BITS = (2, 3, 4, 5, 8, 16)
LEAST_ERROR, MOST_ERROR = 0.25, 1.0
"""What repeats of one call do not show (other shapes, another day) is at least 0.25; beyond 1 nothing is known."""

MEMORY_S, MATMUL_S, EXPAND_S, OVERHEAD_S, PRODUCT_S = 1.5, 1.0, 0.5, 1.5, 0.6
DEEP_LAYERS = 16
BATCHED_TOKENS = 256
MATRIX = 2048
FEATURES = Path("/proc/cpuinfo")
CGROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))
BF16 = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
INT8 = frozenset({"avx512_vnni", "avx_vnni", "amx_int8", "i8mm"})


@dataclass(slots=True)
class _Log:
    """What measuring said so far: notes, the widest spread, and how far it is."""

    progress: Progress
    of: int
    done: int = 0
    spread: float = 0.0
    notes: list[str] = field(default_factory=list)

    def took(self, what: str, call: Callable[[], object], budget_s: float) -> float:
        """The seconds of a call, its spread remembered; if noisy it is timed again and the quieter time taken."""
        each = timed(call, budget_s)
        if each.spread > NOISY:
            each = min(each, timed(call, budget_s), key=lambda one: one.spread)
        self.spread = max(self.spread, each.spread)
        if each.spread > NOISY:
            self.notes.append(f"{what} spread by {each.spread:.0%} (middle half of the repeats)")
        self.step(what)
        return each.seconds

    def step(self, what: str) -> None:
        self.done = min(self.done + 1, self.of)
        self.progress(what, self.done, self.of)


def measure(scratch: Path, progress: Progress, probe: RuntimeProbe) -> HardwareProfile:
    """The profile of this machine's CPU and of the device that holds `scratch`, for the runtime behind `probe`."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    whole = len(probe.products()) + len(probe.attention())
    log = _Log(progress, of=19 + 2 * len(EXPAND_BITS) + whole)
    flags = cpu_flags()
    with torch.inference_mode():
        memory = _memory_bytes_per_s(log)
        matmul = _matmul_flop_per_s(log, flags)
        weights = _expand(log, "expand weights", probe.expand_weights)
        kv = _expand(log, "expand KV", probe.expand_kv)
        products, attention = _product_times(log, probe), _attention_times(log, probe)
        layer_s, kernel_s, step_s = _overheads(log, probe, products)
    tiers = [MemoryTier("dram", available_bytes(), memory)]
    flash = measure_flash(scratch, lambda done, of: log.step("flash reads"))
    if isinstance(flash, Flash):
        tiers.append(MemoryTier("flash", flash.capacity_bytes, flash.sequential_bytes_per_s, flash.curve))
        log.spread = max(log.spread, flash.spread)
        log.notes += [*flash.notes, "flash curve: random blocks, one read at a time; its rate: 4 MiB blocks in order"]
    else:
        log.notes.append(f"no flash tier: {flash.reason}")
    if "hypervisor" in flags:
        log.notes.append("virtual machine: its host may cache flash reads and share the cores")
    cpus = os.cpu_count() or 1
    busy = "; the machine was busy, and figures may be far too low" if load > cpus / 2 else ""
    log.notes.append(f"load average {load:.2f} on {cpus} CPUs when measuring began{busy}")
    progress("measured", log.of, log.of)
    return HardwareProfile(
        name="local",
        kind="cpu",
        float_bits=32,
        tiers=tuple(tiers),
        matmul_flop_per_s=matmul,
        layer_overhead_s=layer_s,
        step_overhead_s=step_s,
        kernel_overhead_s=kernel_s,
        provenance="measured",
        error=min(max(LEAST_ERROR, log.spread), MOST_ERROR),
        sources=(
            f"measured on {cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, {probe.name}",
        ),
        date=date.today().isoformat(),
        expand_weights_per_s=weights,
        expand_kv_per_s=kv,
        product_times=products,
        attention_times=attention,
        notes=tuple(log.notes),
    )


def _memory_bytes_per_s(log: _Log) -> float:
    """Rate of reading memory once through, over far more than the last cache level holds."""
    size = min(max(8 * last_cache_bytes(), 256 * 2**20), available_bytes() // 8)
    numbers = torch.ones(size // 4)
    return numbers.nbytes / log.took("memory reads", numbers.sum, MEMORY_S)


def _matmul_flop_per_s(log: _Log, flags: frozenset[str]) -> tuple[tuple[str, float], ...]:
    """Throughput of a product of 256 tokens with a matrix by type; that of one token goes into the notes."""
    matrix = torch.randn(MATRIX, MATRIX)
    rows = torch.randn(BATCHED_TOKENS, MATRIX)
    flop = 2 * MATRIX * MATRIX * BATCHED_TOKENS
    rates = [("fp32", flop / log.took("fp32 products", lambda: rows @ matrix.T, MATMUL_S))]
    one = rows[:1]
    one_s = log.took("fp32 products, one token", lambda: one @ matrix.T, MATMUL_S)
    log.notes.append(f"one token times {MATRIX}x{MATRIX} in fp32: {matrix.nbytes / one_s:.3g} bytes/s (partly cached)")
    if flags & BF16:
        half, half_rows = matrix.bfloat16(), rows.bfloat16()
        rates.append(("bf16", flop / log.took("bf16 products", lambda: half_rows @ half.T, MATMUL_S)))
    if flags & INT8:
        whole, whole_rows = matrix.to(torch.int8), rows.to(torch.int8)
        whole_s = log.took("int8 products", lambda: torch._int_mm(whole_rows, whole.T), MATMUL_S)
        rates.append(("int8", flop / whole_s))
    return tuple(rates)


def _expand(log: _Log, what: str, probe: Callable[[int], tuple[int, Callable[[], object]] | None]) -> Rates:
    """Elements a second that the runtime expands, by bits, for the widths it stores."""
    rates = []
    for bits in EXPAND_BITS:
        work = probe(bits)
        if work is not None:
            elements, call = work
            rates.append((float(bits), elements / log.took(f"{what} of {bits} bits", call, EXPAND_S)))
    return tuple(rates)


def _product_times(log: _Log, probe: RuntimeProbe) -> tuple[ProductTime, ...]:
    """Seconds for each number of a matrix, by kind and tokens."""
    found: dict[str, list[tuple[int, float]]] = {}
    for each in probe.products():
        seconds = log.took(f"{each.kind} products of {each.tokens} tokens", each.open(), PRODUCT_S)
        found.setdefault(each.kind, []).append((each.tokens, seconds / each.work))
    return tuple(ProductTime(kind, tuple(sorted(points))) for kind, points in found.items())


def _attention_times(log: _Log, probe: RuntimeProbe) -> tuple[AttentionTime, ...]:
    """Seconds for a multiplication with a cached number, by width, for one token and for a chunk."""
    found: dict[str, dict[int, float]] = {}
    for each in probe.attention():
        seconds = log.took(f"{each.kind}-bit attention of {each.tokens} tokens", each.open(), PRODUCT_S)
        found.setdefault(each.kind, {})[each.tokens] = seconds / each.work
    return tuple(AttentionTime(int(bits), by[min(by)], by[max(by)]) for bits, by in found.items())


def _overheads(log: _Log, probe: RuntimeProbe, products: Sequence[ProductTime]) -> tuple[float, float, float]:
    """Seconds that a layer, a class of heads and a step take beside what is priced: differences of short decoders."""
    one, deep, parted = probe.decoder(1, 1), probe.decoder(1 + DEEP_LAYERS, 1), probe.decoder(1 + DEEP_LAYERS, 2)
    one_s = log.took("step overhead", one.call, OVERHEAD_S)
    deep_s = log.took("layer overhead", deep.call, OVERHEAD_S)
    parted_s = log.took("attention overhead", parted.call, OVERHEAD_S)
    each_class = max(parted_s - deep_s, 0.0) / (1 + DEEP_LAYERS)
    each_layer = max(deep_s - one_s, 0.0) / DEEP_LAYERS
    priced = sum(each.seconds(1) * deep.numbers for each in products if each.kind == deep.kind)
    return max(each_layer - each_class - priced, 0.0), each_class, max(one_s - each_layer, 0.0)


# --- what the system says -----------------------------------------------------------------------


def available_bytes() -> int:
    """Memory a new process can use, under its container's limit where there is one."""
    available = int(psutil.virtual_memory().available)
    for path in CGROUP_LIMITS:
        text = path.read_text().strip() if path.is_file() else "max"
        if text.isdigit():
            available = min(available, int(text))
    return available


def last_cache_bytes() -> int:
    """Size of the last cache level, 32 MiB where the system does not say.

    >>> last_cache_bytes() > 0
    True
    """
    sizes = []
    for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        text = path.read_text().strip()
        if text.endswith("K") and text[:-1].isdigit():
            sizes.append(int(text[:-1]) * 1024)
    return max(sizes, default=32 * 2**20)


def cpu_flags() -> frozenset[str]:
    """Instruction sets the CPU lists, empty where the system does not say."""
    return frozenset(f"{_cpuinfo('flags')} {_cpuinfo('Features')}".split())


def cpu_name() -> str:
    """The CPU's name as the system gives it."""
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    if FEATURES.is_file():
        for line in FEATURES.read_text(errors="replace").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""
