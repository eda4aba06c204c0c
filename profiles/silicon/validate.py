"""How far predicted operators are from a directory of measured ones, beside what simpler models say of them."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError
from planner.explain import table
from planner.operators.gemm import KINDS
from planner.operators.sheet import GpuSheet
from profiles.silicon.attention_report import AttentionReport, attention_report
from profiles.silicon.baselines import gemm_roofline, roofline_s, three_constants
from profiles.silicon.fit_gemm import kept_out, predicted_s
from profiles.silicon.fitted import gemm_choice, measured_gpus
from profiles.silicon.measured import Covariance, misses
from profiles.silicon.regimes import Accuracy, by_regime, gemm_regimes
from profiles.silicon.tables import DecodeTable, GemmTable, PrefillTable, decode_tables, gemm_tables, prefill_tables
from profiles.targets import gpu_sheet

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
T = TypeVar("T", bound=GemmTable | DecodeTable | PrefillTable)
R = TypeVar("R")
# Of a table that no fit shipped was made to: how alike misses are over doublings of m, n and k, much the same for all.
COVARIANCE = Covariance((1.0, 2.0, 4.0), 0.3)
PREDICTORS = ("formula", "with table", "roofline", "3 constants")


@dataclass(frozen=True, slots=True)
class Line:
    """The errors of every predictor on one regime of one table, all on shapes that no fit saw.

    formula      as shipped: fitted to the other shapes of this GPU's tables, or carried over from another GPU's
    with table   the formula, corrected by the table's other shapes
    roofline     the data sheet alone
    3 constants  the roofline with a launch and two shares fitted to the table's other shapes
    """

    operator: str
    framework: str
    version: str
    regime: str
    errors: Mapping[str, Accuracy]


@dataclass(frozen=True, slots=True)
class SiliconReport:
    """All lines, where each formula comes from, and what was left out of the tables."""

    target: str
    lines: tuple[Line, ...]
    origins: tuple[str, ...]
    notes: tuple[str, ...]

    def as_json(self) -> dict[str, object]:
        return {
            "target": self.target,
            "lines": [asdict(line) for line in self.lines],
            "origins": list(self.origins),
            "notes": list(self.notes),
        }

    def as_text(self) -> str:
        head = ["", "rows"]
        for predictor in PREDICTORS:
            head += [predictor, "", ""]
        rows = [head]
        section = ""
        for line in self.lines:
            title = f"{line.operator}, {line.framework} {line.version}"
            if title != section:
                rows.append([title, *[""] * (len(head) - 1)])
                section = title
            cells = [f"  {line.regime}", f"{line.errors[PREDICTORS[0]].rows:,}"]
            for predictor in PREDICTORS:
                error = line.errors[predictor]
                cells += [f"{100 * share:.1f}" for share in (error.mape, error.median, error.p90)]
            rows.append(cells)
        return "\n".join(
            [
                f"Errors on {self.target}, on shapes that no fit saw: MAPE, median and 90th percentile in %",
                "",
                *table(rows),
                "",
                *self.origins,
                *(f"note: {note}" for note in self.notes),
            ]
        )


def validate_silicon(directory: Path, target: str, framework: str | None = None) -> SiliconReport:
    """The report of a directory laid out like aiconfigurator's `systems/data/<gpu>`, measured on the target.

    InputError where the directory or the target is none, or the framework has no table in it.
    """
    sheet = gpu_sheet(target)
    gemm, decode, prefill = gemm_tables(directory), decode_tables(directory), prefill_tables(directory)
    calls: list[DecodeTable | PrefillTable] = [*decode.tables, *prefill.tables]
    known = {one.framework for one in gemm.tables} | {one.framework for one in calls}
    if framework is not None and framework not in known:
        raise InputError(f"{directory}: no table of {framework}; there are {', '.join(sorted(known))}")

    # numpy lets go of the interpreter while it computes, so tables side by side keep two cores busy.
    with ThreadPoolExecutor() as pool:
        products = pool.map(lambda one: _or_why(_judged, sheet, one), _of(framework, gemm.tables))
        phases = pool.map(lambda one: _or_why(_reported, sheet, one), _of(framework, calls))
        judged, unjudged = _parted(products)
        reports, unreported = _parted(phases)
    lines = [*_gemm_lines(judged), *(line for report in reports for line in _attention_lines(report))]
    origins = [f"{one.title}: {one.origin}" for one in judged]
    origins += [f"{one.phase} attention, {one.framework} {one.version}: fitted on {one.fitted_on}" for one in reports]
    notes = (*gemm.notes, *decode.notes, *prefill.notes, *unjudged, *unreported)
    return SiliconReport(sheet.name, tuple(lines), tuple(origins), notes)


def _or_why(judge: Callable[[GpuSheet, T], R], sheet: GpuSheet, one: T) -> R | str:
    """The judgement of a table, or in words why no model prices it on this GPU."""
    try:
        return judge(sheet, one)
    except InputError as error:
        return f"{one.framework} {one.version}: {len(one.latency_s)} rows left out: {error}"


def _parted(found: Iterable[R | str]) -> tuple[list[R], list[str]]:
    results, reasons = [], []
    for one in found:
        if isinstance(one, str):
            reasons.append(one)
        else:
            results.append(one)
    return results, reasons


def _reported(sheet: GpuSheet, one: DecodeTable | PrefillTable) -> AttentionReport:
    return attention_report(one, sheet)


def _of(framework: str | None, tables: Sequence[T]) -> list[T]:
    return [one for one in tables if framework in (None, one.framework)]


@dataclass(frozen=True, slots=True, eq=False)
class _Judged:
    """What every predictor says of the rows of a table of products that no fit saw."""

    table: GemmTable
    origin: str
    measured_s: Floats
    predicted_s: Mapping[str, Floats]
    regimes: Mapping[str, Mask]

    @property
    def title(self) -> str:
        return f"{self.table.kind} products, {self.table.framework} {self.table.version}"


def _judged(sheet: GpuSheet, one: GemmTable) -> _Judged:
    choice = gemm_choice(sheet, one.framework, one.kind)
    rows = kept_out(one)
    formula_s = predicted_s(choice.model, sheet, one)
    sizes = np.column_stack((one.m, one.n, one.k)).astype(np.float64)
    missed = misses(sizes[~rows], one.latency_s[~rows], formula_s[~rows], _covariance(sheet, one))
    kind = KINDS[one.kind]
    m, n, k = sizes.T
    flop_s, byte_s = gemm_roofline(
        m, n, k, kind.weight_bits, kind.activation_bits, sheet.rate(kind.multiplied), sheet.memory_bytes_per_s
    )
    constants = three_constants(flop_s[~rows], byte_s[~rows], one.latency_s[~rows])
    predicted = (
        formula_s[rows],
        formula_s[rows] * missed.factor(sizes[rows]),
        roofline_s(flop_s[rows], byte_s[rows]),
        constants.latency_s(flop_s[rows], byte_s[rows]),
    )
    regimes = gemm_regimes(one.m[rows], one.n[rows], one.k[rows])
    return _Judged(one, choice.origin, one.latency_s[rows], dict(zip(PREDICTORS, predicted, strict=True)), regimes)


def _covariance(sheet: GpuSheet, one: GemmTable) -> Covariance:
    """That of the fit to this very table where it is shipped: finding it takes longer than all the rest."""
    key = one.framework, one.version, one.kind
    for gpu in measured_gpus():
        for fit in gpu.fits:
            if gpu.sheet.name == sheet.name and (fit.framework, fit.version, fit.kind) == key:
                return fit.covariance
    return COVARIANCE


def _gemm_lines(judged: Sequence[_Judged]) -> Iterator[Line]:
    """Every kind by itself, and of each framework's version all kinds together."""
    for key in dict.fromkeys((one.table.framework, one.table.version) for one in judged):
        ours = [one for one in judged if (one.table.framework, one.table.version) == key]
        for kind, tables in (("all", ours), *((one.table.kind, [one]) for one in ours)):
            if kind == "all" and len(ours) == 1:
                continue
            measured = np.concatenate([one.measured_s for one in tables])
            regimes = {name: np.concatenate([one.regimes[name] for one in tables]) for name in ours[0].regimes}
            errors = {
                name: by_regime(np.concatenate([one.predicted_s[name] for one in tables]), measured, regimes)
                for name in PREDICTORS
            }
            for regime in errors[PREDICTORS[0]]:
                by_predictor = {name: errors[name][regime] for name in PREDICTORS}
                yield Line(f"{kind} products", *key, regime, by_predictor)


def _attention_lines(report: AttentionReport) -> Iterator[Line]:
    backed = report.backed if report.backed is not None else report.formula
    columns = report.formula, backed, report.roofline, report.three_constants
    for regime in report.formula:
        errors = {name: column[regime] for name, column in zip(PREDICTORS, columns, strict=True)}
        yield Line(f"{report.phase} attention", report.framework, report.version, regime, errors)
