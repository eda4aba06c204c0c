"""The fitted models of matrix products that ship, each with the error it was found to have on rows no fit saw.

    profiles/silicon/operators/gemm-<gpu>.yaml     a GPU with measured tables: a fit a framework, version and kind
    profiles/silicon/operators/gemm-transfer.yaml  what a GPU with a data sheet only gets

`python -m profiles.silicon.fit` writes them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.resources import files

from planner.errors import InputError
from planner.operators.gemm import GemmModel
from planner.operators.sheet import GpuSheet
from planner.serde import load
from profiles.silicon.measured import Covariance
from profiles.silicon.regimes import Accuracy

# Kinds that no table has, and the kind of the same kernels whose parameters they take.
_LIKE: Mapping[str, str] = {"fp4": "fp8"}
# Generations of GPUs without tables, and the generation whose kernels theirs are most like.
_KIN: Mapping[str, str] = {"sm_86": "sm_80", "sm_89": "sm_80", "sm_100": "sm_90"}
_FRAMEWORKS = ("vllm", "trtllm", "sglang")


@dataclass(frozen=True, slots=True)
class GemmFit:
    """One framework's products of one kind on one GPU: the error of the formula, and of it backed by the table.

    `covariance` is that of what the formula misses.
    """

    framework: str
    version: str
    kind: str
    fitted_rows: int
    model: GemmModel
    errors: Mapping[str, Accuracy]
    covariance: Covariance
    backed_errors: Mapping[str, Accuracy]


@dataclass(frozen=True, slots=True)
class GemmFits:
    """Every fit to one GPU's tables, under the data sheet that its units refer to."""

    sheet: GpuSheet
    date: str
    source: str
    licence: str
    fits: tuple[GemmFit, ...]


@dataclass(frozen=True, slots=True)
class TransferFit:
    """Products of one kind on a GPU without tables.

    `errors` are, by GPU left out, those of a fit to the others under that GPU's data sheet; of a kind that only one
    GPU was measured in there are none.
    """

    kind: str
    fitted_to: tuple[str, ...]
    model: GemmModel
    errors: Mapping[str, Mapping[str, Accuracy]]


@dataclass(frozen=True, slots=True)
class GemmTransfer:
    """What carries over from the GPUs with tables to one with a data sheet only."""

    date: str
    source: str
    licence: str
    fits: tuple[TransferFit, ...]


@dataclass(frozen=True, slots=True)
class Choice:
    """The model that prices a GPU's products, its error by regime, and in words where both come from."""

    model: GemmModel
    errors: Mapping[str, Accuracy]
    origin: str


def gemm_choice(sheet: GpuSheet, framework: str, kind: str) -> Choice:
    """The nearest fit to a GPU's products of a kind: its own, that of a GPU of its generation, what carries over.

    Of its own, the framework's newest; without one, the newest of another. Raises InputError for a kind without any.
    """
    for one in measured_gpus():
        if one.sheet.name == sheet.name and (fit := _preferred(one.fits, framework, kind)):
            return Choice(fit.model, fit.errors, f"fitted to {fit.framework} {fit.version} on {one.sheet.name}")
    carried = {fit.kind: fit for fit in transferred().fits}
    if (like := _LIKE.get(kind, kind)) not in carried:
        raise InputError(f"no {kind} product was measured; known: {', '.join((*carried, *_LIKE))}")
    errors = _worst(carried[like].errors)
    generation = _KIN.get(sheet.architecture, sheet.architecture)
    for one in measured_gpus():
        if one.sheet.architecture == generation and (fit := _preferred(one.fits, framework, like)):
            return Choice(
                fit.model, errors, f"fitted to {fit.framework} {fit.version} on {one.sheet.name}, carried over"
            )
    return Choice(carried[like].model, errors, f"fitted to {', '.join(carried[like].fitted_to)}, carried over")


@lru_cache
def measured_gpus() -> tuple[GemmFits, ...]:
    """The fits of every GPU with tables, in the order of their files."""
    folder = files("profiles.silicon") / "operators"
    names = sorted(file.name for file in folder.iterdir() if file.name.startswith("gemm-"))
    return tuple(
        load((folder / name).read_text(encoding="utf-8"), GemmFits, name) for name in names if name != _TRANSFER
    )


@lru_cache
def transferred() -> GemmTransfer:
    """What a GPU with a data sheet only gets."""
    return load(
        (files("profiles.silicon") / "operators" / _TRANSFER).read_text(encoding="utf-8"), GemmTransfer, _TRANSFER
    )


def _preferred(fits: tuple[GemmFit, ...], framework: str, kind: str) -> GemmFit | None:
    """The framework's newest fit of a kind, or another's."""
    of_kind = [fit for fit in fits if fit.kind == kind]
    for name in (framework, *_FRAMEWORKS):
        if found := [fit for fit in of_kind if fit.framework == name]:
            return found[-1]
    return of_kind[-1] if of_kind else None


def _worst(errors: Mapping[str, Mapping[str, Accuracy]]) -> dict[str, Accuracy]:
    """By regime, the largest error among the GPUs left out."""
    regimes = {regime: None for by_regime in errors.values() for regime in by_regime}
    return {
        regime: max((one[regime] for one in errors.values() if regime in one), key=lambda accuracy: accuracy.mape)
        for regime in regimes
    }


_TRANSFER = "gemm-transfer.yaml"
