"""Fits the model of matrix products to measured ones, by least squares on the logarithm of the latency."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from planner.operators.gemm import KINDS, GemmModel, Kind
from planner.operators.sheet import GpuSheet
from profiles.silicon.measured import Covariance, Misses, misses
from profiles.silicon.regimes import Accuracy, by_regime, gemm_regimes
from profiles.silicon.split import held_out
from profiles.silicon.tables import GemmTable

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# The tables' benchmark reads six copies of the weights in turn.
WEIGHT_COPIES = 6
# Where a fit starts, and what it falls back to where rows say nothing.
START = GemmModel(
    launch_kclocks=3.5,
    flop_time=0.97,
    edge_time=0.15,
    ragged_time=0.0,
    load_bytes_per_clock=35.0,
    fill_kclocks=0.6,
    epilogue_kclocks=1.5,
    wave_softness=0.18,
    read_share=0.95,
    write_share=1.0,
    cached_rate=2.1,
    cached_share=0.4,
    reduce_kclocks=3.0,
    reduce_rate=2.3,
    hot_share=0.1,
    hot_s=2e-3,
    choice=0.04,
    unpack_per_clock=64.0,
    quantise_rate=1.0,
    issue_s=0.0,
)
# What one GPU's products hardly tell from the rest, and what would carry its libraries' habits over to another GPU.
PINNED_TO_TRANSFER = frozenset(
    {"flop_time", "wave_softness", "write_share", "cached_rate", "reduce_rate", "hot_s", "choice"}
)
_ROWS = 2000
# Errors beyond this count less than by their square: outliers of the measurement.
_OUTLYING = 0.06
_PRIOR = 0.3


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """Rows to fit to, of one table."""

    sheet: GpuSheet
    kind: str
    m: Floats
    n: Floats
    k: Floats
    latency_s: Floats


def kept_out(table: GemmTable) -> Mask:
    """The rows that no fit sees."""
    return held_out(table.m, table.n, table.k)


def predicted_s(model: GemmModel, sheet: GpuSheet, table: GemmTable) -> Floats:
    """What the model says of every row of a table, measured as the table was."""
    return model.latency_s(sheet, table.kind, table.m, table.n, table.k, WEIGHT_COPIES)


def missed(formula_s: Floats, table: GemmTable, covariance: Covariance | None = None) -> Misses:
    """What a formula misses on the fitted rows of a table.  formula_s [rows], of every row"""
    fitted = ~kept_out(table)
    return misses(sizes(table)[fitted], table.latency_s[fitted], formula_s[fitted], covariance)


def validated(
    formula_s: Floats, table: GemmTable, covariance: Covariance | None = None
) -> tuple[dict[str, Accuracy], dict[str, Accuracy]]:
    """Errors by regime on the rows that no fit saw: of the formula, and of it backed by the table's fitted rows.

    formula_s  [rows]  of every row
    """
    out = kept_out(table)
    backed_s = formula_s[out] * missed(formula_s, table, covariance).factor(sizes(table)[out])
    return judged(formula_s[out], table), judged(backed_s, table)


def judged(latency_s: Floats, table: GemmTable) -> dict[str, Accuracy]:
    """The error by regime of any prediction of the rows that no fit saw.  latency_s [rows kept out]"""
    out = kept_out(table)
    regimes = {name: mask[out] for name, mask in gemm_regimes(table.m, table.n, table.k).items()}
    return by_regime(latency_s, table.latency_s[out], regimes)


def errors(model: GemmModel, sheet: GpuSheet, table: GemmTable) -> dict[str, Accuracy]:
    """The formula's error by regime on the rows that no fit saw."""
    return judged(predicted_s(model, sheet, table)[kept_out(table)], table)


def sizes(table: GemmTable) -> Floats:
    """m, n, k.  [rows, 3]"""
    return np.column_stack((table.m, table.n, table.k)).astype(np.float64)


def fit(tables: Sequence[tuple[GpuSheet, GemmTable]], pinned: frozenset[str] = frozenset()) -> GemmModel:
    """The model of all tables together, all of one kind, from their fitted rows; `pinned` parameters stay at START.

    The same tables give the same model: the rows fitted to are every so many of them, at most 2,000 a table.
    """
    samples = [sample(sheet, table) for sheet, table in tables]
    found = [_from(start, samples, pinned) for start in _starts(KINDS[tables[0][1].kind])]
    return min(found, key=lambda pair: pair[0])[1]


def _starts(kind: Kind) -> tuple[GemmModel, ...]:
    """Where fits of a kind start: products of quantised activations come from several libraries."""
    if not kind.quantised:
        return (START,)
    ragged = replace(START, ragged_time=0.1)
    return ragged, replace(ragged, choice=0.0), replace(ragged, issue_s=3e-5)


def _from(start: GemmModel, samples: Sequence[Sample], pinned: frozenset[str]) -> tuple[float, GemmModel]:
    """The best model near a start and what it misses. What a start leaves at 0 stays there."""
    kind = KINDS[samples[0].kind]
    idle = {"unpack_per_clock": not kind.unpacked, "quantise_rate": not kind.quantised}
    free = [
        one.name
        for one in fields(GemmModel)
        if getattr(start, one.name) and one.name not in pinned and not idle.get(one.name)
    ]
    origin = _encoded(start, free)

    def misses(point: Floats) -> Floats:
        model = _decoded(point, free, start)
        logs = [
            np.log(model.latency_s(one.sheet, one.kind, one.m, one.n, one.k, WEIGHT_COPIES) / one.latency_s)
            for one in samples
        ]
        return np.concatenate([*logs, _PRIOR * (point - origin)])

    found = least_squares(misses, origin, loss="soft_l1", f_scale=_OUTLYING, diff_step=1e-3, max_nfev=40)
    return float(found.cost), _rounded(_decoded(found.x, free, start))


def sample(sheet: GpuSheet, table: GemmTable) -> Sample:
    """At most 2,000 fitted rows of a table, the same every time."""
    rows = np.flatnonzero(~kept_out(table))
    rows = np.random.default_rng(0).permutation(rows)[:_ROWS]
    sizes = (column[rows].astype(np.float64) for column in (table.m, table.n, table.k))
    m, n, k = sizes
    return Sample(sheet, table.kind, m, n, k, table.latency_s[rows])


def _encoded(model: GemmModel, names: Sequence[str]) -> Floats:
    """Parameters as unbounded numbers: the logarithm of what is positive, the log odds of a share of one."""
    values = {name: float(getattr(model, name)) for name in names}
    return np.array([np.log(v / (1 - v)) if name in _ODDS else np.log(v) for name, v in values.items()])


def _decoded(point: Floats, names: Sequence[str], rest: GemmModel) -> GemmModel:
    values: Mapping[str, float] = {
        name: float(1 / (1 + np.exp(-x)) if name in _ODDS else np.exp(x)) for name, x in zip(names, point, strict=True)
    }
    return replace(rest, **values)


def _rounded(model: GemmModel) -> GemmModel:
    return replace(model, **{one.name: float(f"{getattr(model, one.name):.4g}") for one in fields(GemmModel)})


_ODDS = frozenset({"wave_softness"})
