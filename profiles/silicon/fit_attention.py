"""Fitting the attention kernels of a framework to its table of measured latencies, on the shapes a fit may see."""

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.operators.attention import Append, AttentionModel, DecodeKernel, PrefillKernel, served
from planner.operators.attention_work import Calls
from planner.operators.sheet import GpuSheet
from profiles.silicon.attention_data import AttentionTransfer, FittedAttention, FrameworkAttention
from profiles.silicon.attention_kernels import BEFORE_HOPPER, attention_kernels
from profiles.silicon.regimes import Accuracy, attention_regimes, by_regime
from profiles.silicon.split import held_out
from profiles.silicon.tables import DecodeTable, PrefillTable, decode_tables, prefill_tables

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
K = TypeVar("K", DecodeKernel, PrefillKernel)

# Least and most of every parameter; a kernel's start comes from attention_kernels.py.
Bounds = Mapping[str, tuple[float, float]]
_COMMON: Bounds = {
    "append.token_s": (1e-10, 1e-7),
    "append.narrow": (0.5, 3.0),
    "append.traffic": (0.05, 20.0),
    "launch_s": (1e-6, 40e-6),
    "extra_launch_s": (0.1e-6, 10e-6),
    "sequence_s": (1e-11, 3e-6),
    "item_cycles": (50, 40000),
    "row_cycles_per_dim": (0.001, 20),
    "alone": (0.3, 3.0),
    "memory_share": (0.3, 1.0),
    "overlap": (1.0, 12.0),
}
DECODE: Bounds = {
    **_COMMON,
    "split_sequence_s": (1e-10, 6e-6),
    "item_cycles_per_dim": (0.1, 200),
    "key_cycles": (0.5, 400),
    "key_cycles_per_dim": (0.005, 4),
    "key_cycles_per_row": (1e-4, 20),
    "partial_s_per_dim": (1e-13, 3e-9),
    "l2_rate": (1.0, 8.0),
    "l2_share": (0.2, 2.0),
    "l2_sharpness": (0.5, 12.0),
}
PREFILL: Bounds = {
    **_COMMON,
    "token_s": (1e-12, 2e-8),
    "tensor_share": (0.05, 1.0),
    "softmax_cycles": (0.0005, 1.0),
    "small_tile": (0.3, 4.0),
    "serial": (0.5, 3.0),
    "tail": (0.02, 2.0),
    "partial_traffic": (0.01, 20.0),
    "throttle": (0.001, 0.5),
    "throttle_s": (1e-4, 3e-2),
}

_ROWS = 4000  # a fit looks at no more rows of a kernel: the parameters are few
_FEWEST_ROWS = 60  # below it a kernel is left out, and its calls go to another
# Errors beyond it count less than their square (a table has outliers): a pseudo-Huber loss on the log of the latency.
_LOSS_SCALE = 0.08
# How much a parameter's distance from its start weighs beside the rows, so that one the rows are silent on stays there.
_PRIOR = 0.002


def decode_calls(table: DecodeTable) -> Calls:
    one = np.ones_like(table.batch)
    return _calls(table, one, table.context - 1, 16 * one)


def prefill_calls(table: PrefillTable) -> Calls:
    return _calls(table, table.prompt, table.prefix, table.compute_bits)


def _calls(table: DecodeTable | PrefillTable, prompt: Ints, prefix: Ints, compute_bits: Ints) -> Calls:
    return Calls(
        batch=table.batch,
        q_heads=table.q_heads,
        kv_heads=table.kv_heads,
        head_dim=table.head_dim,
        prompt=prompt,
        prefix=prefix,
        kv_bits=table.kv_bits,
        compute_bits=compute_bits,
        window=np.where(table.window < prefix + prompt, table.window, 0),
    )


def held_out_calls(calls: Calls) -> Mask:
    """Which calls no fit sees, by their shape alone: decode and prefill of the same sizes fall on the same side."""
    return held_out(
        calls.batch, calls.q_heads, calls.kv_heads, calls.head_dim, calls.prompt, calls.prefix, calls.window
    )


def fit_kernel(start: K, sheet: GpuSheet, calls: Calls, latency_s: Floats) -> K:
    """The kernel with its parameters fitted to these calls, from those it starts with.

    Least squares on the log of the latency, in the logs of the parameters, within bounds.
    """
    from scipy.optimize import least_squares

    bounds = _bounds(start)
    least, most = np.log(np.array(list(bounds.values()))).T
    origin = np.clip(np.log([_parameter(start, name) for name in bounds]), least, most)
    rows = np.random.default_rng(0).permutation(len(latency_s))[:_ROWS]
    some = calls.take(np.isin(np.arange(len(latency_s)), rows))
    log_s = np.log(latency_s[np.sort(rows)])
    work = start.work(sheet, some)

    def at(logs: Floats) -> K:
        return _with(start, dict(zip(bounds, np.exp(logs).tolist(), strict=True)))

    def losses(logs: Floats) -> Floats:
        error = np.log(at(logs).latency_s(sheet, some, work)) - log_s
        robust = np.sign(error) * _LOSS_SCALE * np.sqrt(2 * (np.sqrt(1 + (error / _LOSS_SCALE) ** 2) - 1))
        return np.concatenate([robust, _PRIOR * np.sqrt(len(error)) * (logs - origin)])

    found = least_squares(losses, origin, bounds=(least - 1e-9, most + 1e-9), max_nfev=60)
    # Four digits say as much as the rows do.
    return _with(start, {name: float(f"{x:.4g}") for name, x in zip(bounds, np.exp(found.x), strict=True)})


def fit_model(start: AttentionModel, sheet: GpuSheet, decode: DecodeTable, prefill: PrefillTable) -> AttentionModel:
    """A framework's kernels fitted to the rows of its tables that fits may see; kernels without rows are left out."""
    steps, prompts = decode_calls(decode), prefill_calls(prefill)
    long = ~start.steps(prompts)
    return replace(
        start,
        decode=_fitted(start.decode, sheet, steps, decode.latency_s),
        prefill=_fitted(start.prefill, sheet, prompts.take(long), prefill.latency_s[long]),
    )


def _fitted(kernels: tuple[K, ...], sheet: GpuSheet, calls: Calls, latency_s: Floats) -> tuple[K, ...]:
    seen = ~held_out_calls(calls)
    found, seconds = calls.take(seen), latency_s[seen]
    return tuple(
        fit_kernel(kernel, sheet, found.take(rows), seconds[rows])
        for kernel, rows in served(kernels, found, sheet)
        if rows.sum() >= _FEWEST_ROWS
    )


def carried(model: AttentionModel, kernels: AttentionModel) -> AttentionModel:
    """The figures of a model fitted on one GPU in the kernels that another GPU runs.

    A kernel takes those of the fitted one for the same form and types, or else of the last one for 16 bits.
    """
    return replace(
        kernels,
        decode=tuple(_carry(model.decode, kernel) for kernel in kernels.decode),
        prefill=tuple(_carry(model.prefill, kernel) for kernel in kernels.prefill),
    )


def _carry(fitted: tuple[K, ...], kernel: K) -> K:
    same = [one for one in fitted if one.serves == kernel.serves]
    plain = [one for one in fitted if one.serves.kv_bits == 16]
    giver = (same or plain[::-1] or fitted[-1:])[0]
    figures = {name: _parameter(giver, name) for name in _bounds(kernel)}
    if isinstance(kernel, DecodeKernel) and kernel.resident == 1:
        # What a tile gains when it has an SM to itself says nothing where it always has.
        figures["alone"] = 1.0
    return _with(kernel, figures)


def errors(model: AttentionModel, sheet: GpuSheet, decode: DecodeTable, prefill: PrefillTable) -> dict[str, Accuracy]:
    """The model's error on the shapes kept out of fits, by phase and regime."""
    found: dict[str, Accuracy] = {}
    for phase, table, calls in (("decode", decode, decode_calls(decode)), ("prefill", prefill, prefill_calls(prefill))):
        rows = held_out_calls(calls)
        kept = calls.take(rows)
        regimes = attention_regimes(kept.kv_bytes, sheet.l2_bytes)
        accuracies = by_regime(model.latency_s(sheet, kept), table.latency_s[rows], regimes)
        found |= {f"{phase}, {name}": one for name, one in accuracies.items()}
    return found


def _parameter(kernel: K, name: str) -> float:
    outer, _, inner = name.partition(".")
    return float(getattr(getattr(kernel, outer), inner) if inner else getattr(kernel, outer))


def _bounds(kernel: K) -> Bounds:
    return DECODE if isinstance(kernel, DecodeKernel) else PREFILL


def _with(kernel: K, figures: Mapping[str, float]) -> K:
    """The kernel with these parameters."""
    append = Append(**{field.name: figures[f"append.{field.name}"] for field in fields(Append)})
    own: dict[str, Any] = {name: figure for name, figure in figures.items() if "." not in name}
    return replace(kernel, append=append, **own)


def fit_attention(directory: Path, sheet: GpuSheet, date: str, source: str, licence: str) -> FittedAttention:
    """The attention models of every framework that the tables below a directory have, decode and prefill."""
    prefills = {(table.framework, table.version): table for table in prefill_tables(directory).tables}
    frameworks: dict[str, FrameworkAttention] = {}
    for decode in decode_tables(directory).tables:
        prefill = prefills.get((decode.framework, decode.version))
        if prefill is None:
            continue
        model = fit_model(attention_kernels(decode.framework, sheet.architecture), sheet, decode, prefill)
        frameworks[decode.framework] = FrameworkAttention(decode.version, model, errors(model, sheet, decode, prefill))
    return FittedAttention(sheet.name, date, source, licence, frameworks)


def left_out(fitted: FittedAttention, directory: Path, sheet: GpuSheet) -> dict[str, dict[str, Accuracy]]:
    """The error of another GPU's fit on this one's tables, on the same held-out shapes, a framework each."""
    prefills = {(table.framework, table.version): table for table in prefill_tables(directory).tables}
    found: dict[str, dict[str, Accuracy]] = {}
    for decode in decode_tables(directory).tables:
        prefill = prefills.get((decode.framework, decode.version))
        given = fitted.frameworks.get(decode.framework)
        if prefill is None or given is None:
            continue
        model = carried(given.model, attention_kernels(decode.framework, sheet.architecture))
        name = f"{decode.framework}, {fitted.gpu} to {sheet.name}"
        found[name] = errors(model, sheet, decode, prefill)
    return found


def attention_documents(
    measured: Sequence[tuple[Path, GpuSheet]], date: str, source: str, licence: str
) -> tuple[tuple[FittedAttention, ...], AttentionTransfer]:
    """The documents to ship: every GPU's fit, and who lends to GPUs without one, with the error of leaving each out.

    measured  the directory of a GPU's tables and its data sheet; at least one
    """
    fits = tuple(fit_attention(directory, sheet, date, source, licence) for directory, sheet in measured)
    old = [fit.gpu for fit, (_, sheet) in zip(fits, measured, strict=True) if sheet.architecture in BEFORE_HOPPER]
    new = [fit.gpu for fit in fits if fit.gpu not in old]
    errors_of: dict[str, dict[str, Accuracy]] = {}
    for given in fits:
        for directory, sheet in measured:
            if sheet.name != given.gpu:
                errors_of |= left_out(given, directory, sheet)
    nearest = dict.fromkeys(BEFORE_HOPPER, (old or new)[0])
    return fits, AttentionTransfer(date, nearest, (new or old)[0], errors_of)
