"""Fits the operator models again and writes their parameters: `python -m profiles.silicon.fit a100=DIR h100=DIR`.

Each argument names a GPU target and the directory of its measured tables. The files written are those that ship, in
profiles/silicon/operators.
"""

import sys
from collections.abc import Mapping, Sequence
from datetime import date
from pathlib import Path

import numpy as np

from planner.errors import InputError
from planner.operators.sheet import GpuSheet
from planner.serde import dump_file
from profiles.silicon.fit_gemm import PINNED_TO_TRANSFER, errors, fit, kept_out, missed, predicted_s, validated
from profiles.silicon.fitted import GemmFit, GemmFits, GemmTransfer, TransferFit
from profiles.silicon.regimes import Accuracy
from profiles.silicon.tables import GemmTable, gemm_tables
from profiles.targets import gpu_sheet

SOURCE = "NVIDIA aiconfigurator 0.12.0, systems/data, https://github.com/ai-dynamo/aiconfigurator"
LICENCE = "Apache-2.0, Copyright (c) 2025-2026 NVIDIA CORPORATION & AFFILIATES"
_PRIMARY = ("vllm", "trtllm", "sglang")


def main(arguments: Sequence[str]) -> None:
    """Fit every table of every directory, and what carries over between the GPUs; write the documents."""
    places = dict(argument.partition("=")[::2] for argument in arguments)
    if not places or not all(places.values()):
        raise InputError("usage: python -m profiles.silicon.fit TARGET=DIR..., as a100=tables/a100 h100=tables/h100")
    folder, today = Path(__file__).parent / "operators", date.today().isoformat()
    tables = {gpu_sheet(gpu): gemm_tables(Path(place)).tables for gpu, place in places.items()}
    for sheet, found in tables.items():
        fits = tuple(_fitted(sheet, table) for table in found)
        dump_file(GemmFits(sheet, today, SOURCE, LICENCE, fits), folder / f"gemm-{sheet.name}.yaml")
    carried = GemmTransfer(today, SOURCE, LICENCE, tuple(transfer(tables)))
    dump_file(carried, folder / "gemm-transfer.yaml")


def transfer(tables: Mapping[GpuSheet, Sequence[GemmTable]]) -> list[TransferFit]:
    """What carries over, by kind: fitted to one table a GPU, and judged on each GPU by a fit to the others."""
    kinds = dict.fromkeys(table.kind for found in tables.values() for table in found)
    return [_carried(kind, _comparable(kind, tables)) for kind in kinds]


def _fitted(sheet: GpuSheet, table: GemmTable) -> GemmFit:
    model = fit([(sheet, table)])
    formula_s = predicted_s(model, sheet, table)
    covariance = missed(formula_s, table).covariance
    formula, backed = validated(formula_s, table, covariance)
    return GemmFit(
        framework=table.framework,
        version=table.version,
        kind=table.kind,
        fitted_rows=int(np.count_nonzero(~kept_out(table))),
        model=model,
        errors=formula,
        covariance=covariance,
        backed_errors=backed,
    )


def _carried(kind: str, tables: Mapping[GpuSheet, GemmTable]) -> TransferFit:
    left_out: dict[str, Mapping[str, Accuracy]] = {}
    if len(tables) > 1:
        for sheet, table in tables.items():
            others = [pair for pair in tables.items() if pair[0] != sheet]
            left_out[sheet.name] = errors(fit(others, pinned=PINNED_TO_TRANSFER), sheet, table)
    model = fit([*tables.items()], pinned=PINNED_TO_TRANSFER)
    return TransferFit(kind, tuple(sheet.name for sheet in tables), model, left_out)


def _comparable(kind: str, tables: Mapping[GpuSheet, Sequence[GemmTable]]) -> dict[GpuSheet, GemmTable]:
    """Every GPU's newest table of a kind, by the first framework that has any: another's kernels may be others."""
    found = [(sheet, table) for sheet, every in tables.items() for table in every if table.kind == kind]
    framework = min((table.framework for _, table in found), key=lambda name: (*_PRIMARY, name).index(name))
    return {sheet: table for sheet, table in found if table.framework == framework}


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(f"Error: {error}")
