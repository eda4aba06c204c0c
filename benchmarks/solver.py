"""How fast and how close the solver is on synthetic models; `python benchmarks/solver.py` prints a table.

The losses fall with the bytes kept, roughly as a power, with noise and clipped at 0; sites differ a hundredfold, many
tie exactly, and one site can dominate. Bytes and seconds go together but not quite, as they do in real kernels.
"""

import sys
import time
from dataclasses import dataclass, replace

import numpy as np

from planner.solver import solve
from planner.solver_problem import AtMost, Floats, Problem


@dataclass(frozen=True, slots=True)
class Case:
    """A name, a problem and the gap it is solved to."""

    name: str
    problem: Problem
    gap: float


def site_losses(rng: np.random.Generator, kept: Floats, noise: float) -> Floats:
    """Loss of keeping these shares of a site's bytes."""
    size = 10 ** rng.uniform(-5, -3)
    steepness = rng.uniform(0.7, 3.0)
    loss = size * (np.maximum(kept, 1e-3) ** -steepness - 1) * np.exp(rng.normal(0, noise, len(kept)))
    loss += size * rng.normal(0, 0.02, len(kept))
    if rng.random() < 0.1:
        loss = np.round(loss, 4)
    return np.maximum(loss, 0.0)


def big(
    seed: int = 0, layers: int = 126, heads: int = 8, most: int = 2, tight: float = 0.35, dominant: bool = False
) -> Problem:
    """KV heads with 35 kernel classes in each of two tiers, at most `most` classes a layer."""
    rng = np.random.default_rng(seed)
    spans = np.array([1.0, 0.75, 0.5, 0.35, 0.25, 0.12, 0.06])
    bits = np.array([16.0, 8.0, 6.0, 4.0, 3.0]) / 16
    span, bit = (x.reshape(-1) for x in np.meshgrid(spans, bits, indexing="ij"))
    kept = span * bit
    full = 131072 * 2 * 128 * 2.0
    slow = rng.uniform(0.8, 1.2, len(kept)) * (1 + 0.3 * (bit < 0.5))
    blocks = []
    for site in range(layers * heads):
        loss = site_losses(rng, kept, 0.15) + site_losses(rng, bit, 0.3) * 0.3
        loss[0] = 0.0
        if dominant and site == 0:
            loss *= 1e3
        size = np.round(full * kept)
        core = size / 2e12 * slow + 1e-7
        for tier in range(2):
            here = size if tier == 0 else np.zeros_like(size)
            there = size if tier == 1 else np.zeros_like(size)
            blocks.append(np.stack([loss, here, there, core, there / 5e10], axis=1))
    usage = np.concatenate(blocks)
    constant = np.array([0.0, 2e9, 0.0, 4e-3, 1e-5])
    sites = layers * heads
    total = full * sites
    limits = np.array([np.inf, 2e9 + total * tight * 0.6, total * tight * 0.5, 0.0, 0.0])
    limits[3:] = 4e-3 + 1.1 * total * tight * 0.6 / 2e12
    labels = tuple(range(35)) * 2
    relations = tuple(
        AtMost(tuple(range(layer * heads, (layer + 1) * heads)), (labels,) * heads, most) for layer in range(layers)
    )
    rows = ("loss", "fast_bytes", "slow_bytes", "core_s", "link_s")
    return Problem((70,) * sites, rows, usage, constant, limits, (0,), relations, tie_break=(3,))


def small(seed: int = 0, tight: float = 0.4, minimise: tuple[int, ...] = (0,)) -> Problem:
    """A small model on one device: 90 KV sites of 150 candidates, 211 matrices of 6, no relations."""
    rng = np.random.default_rng(seed)
    blocks, groups = [], []
    for site in range(301):
        count = 150 if site < 90 else 6
        kept = np.sort(rng.uniform(0.03, 1.0, count))[::-1]
        kept[0] = 1.0
        if site >= 90:
            kept = np.array([16, 8.5, 6.5, 5.5, 4.5, 3.4]) / 16
        loss = site_losses(rng, kept, 0.1)
        loss[0] = 0.0
        size = np.round(kept * (2e5 if site < 90 else 1.2e6 * rng.choice([0.2, 1.0, 3.0])))
        decode = size / 2e10 * rng.uniform(0.9, 1.3, count) + 2e-6
        prefill = size / 1e10 * rng.uniform(0.5, 1.5, count) + 1e-5
        kv = size if site < 90 else np.zeros(count)
        blocks.append(np.stack([loss, size, kv, decode, prefill], axis=1))
        groups.append(count)
    usage = np.concatenate(blocks)
    most = np.add.reduce(np.maximum.reduceat(usage, np.cumsum([0, *groups[:-1]]), axis=0))
    limits = most * np.array([np.inf, tight, tight * 0.9, tight * 1.1, tight * 1.3])
    if 0 not in minimise:
        limits[0] = most[0] * 0.02
    rows = ("loss", "bytes", "kv_bytes", "decode_s", "ttft_s")
    return Problem(tuple(groups), rows, usage, np.zeros(5), limits, minimise, tie_break=(1,))


def classes(seed: int = 0, layers: int = 30, heads: int = 3, share: float = 0.125, most: int = 2) -> Problem:
    """KV heads with 150 kernel classes, every pair of key and value bits in six windows, at most `most` a layer."""
    rng = np.random.default_rng(seed)
    spans, bits = np.array([1.0, 0.5, 0.25, 0.125, 0.06, 0.03]), np.array([16.0, 8.0, 4.0, 3.0, 2.0])
    span, k, v = (x.reshape(-1) for x in np.meshgrid(spans, bits, bits, indexing="ij"))
    k_error, v_error = (np.where(x == 16, 0.0, 4.0**-x) for x in (k, v))
    full = 2048 * 64 * 2 * 2.0
    size = np.round(full * span * (k + v) / 32) + 128 * (k < 16) + 64 * (v < 16)
    core = size / 2e10 + span * ((k < 16) * 2.5e-7 * k + (v < 16) * 1.2e-6)
    blocks = []
    for _ in range(layers * heads):
        evicted = 10 ** rng.uniform(-4, -1.5) * (span ** -rng.uniform(0.3, 2) - 1)
        coded = rng.uniform(0.02, 1) * k_error + rng.uniform(0.02, 0.3) * v_error
        loss = evicted + coded * rng.uniform(0.8, 1.25, len(span)) * (1 + span)
        blocks.append(np.stack([np.maximum(loss, 0.0), size, core], axis=1))
    labels = tuple(range(len(span)))
    relations = tuple(
        AtMost(tuple(range(layer * heads, (layer + 1) * heads)), (labels,) * heads, most) for layer in range(layers)
    )
    limits = np.array([np.inf, share * full * layers * heads, np.inf])
    groups = (len(span),) * (layers * heads)
    rows = ("loss", "kv_bytes", "core_s")
    return Problem(groups, rows, np.concatenate(blocks), np.zeros(3), limits, (0,), relations, tie_break=(2,))


def one_span(problem: Problem) -> Problem:
    """The same with one span for all sites, as runtimes with a single window want it."""
    sites = len(problem.groups)
    spans = tuple(label // 5 for label in range(35)) * 2
    return replace(problem, at_most=(*problem.at_most, AtMost(tuple(range(sites)), (spans,) * sites, 1)))


def cases() -> list[Case]:
    """The table's rows."""
    return [
        Case("126 layers", big(), 5e-3),
        Case("126 layers, other seed", big(1), 5e-3),
        Case("126 layers, tight", big(2, tight=0.12), 5e-3),
        Case("126 layers, roomy", big(3, tight=0.7), 5e-3),
        Case("126 layers, one dominates", big(4, dominant=True), 5e-3),
        Case("126 layers, 1 class", big(5, most=1), 5e-3),
        Case("126 layers, 3 classes", big(6, most=3), 5e-3),
        Case("126 layers, to 0.05 %", big(), 5e-4),
        Case("126 layers, one span", one_span(big(7)), 5e-3),
        Case("30 layers, 150 classes", classes(), 1e-3),
        Case("30 layers, roomy", classes(1, share=0.25), 1e-3),
        Case("SmolLM-like", small(), 1e-3),
        Case("SmolLM-like, tight", small(1, 0.25), 1e-3),
        Case("SmolLM-like, roomy", small(2, 0.7), 1e-3),
        Case("SmolLM-like, least decode", small(3, 0.6, (3,)), 1e-3),
        Case("SmolLM-like, overlapped", small(4, 0.6, (3, 4)), 1e-3),
    ]


def main() -> None:
    """Print the table."""
    wanted = sys.argv[1] if len(sys.argv) > 1 else ""
    print(f"{'case':28} {'seconds':>8} {'gap %':>8} {'objective':>12} status")
    for case in cases():
        if wanted in case.name:
            begin = time.perf_counter()
            solution = solve(case.problem, gap=case.gap)
            seconds = time.perf_counter() - begin
            figures = f"{seconds:8.2f} {100 * solution.gap:8.4f} {solution.objective:12.6g}"
            print(f"{case.name:28} {figures} {solution.status}")


if __name__ == "__main__":
    main()
