"""How far attention predictions are from measured tables, beside what simpler models say of the same rows."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from planner.operators.attention_work import Calls
from planner.operators.sheet import GpuSheet
from profiles.silicon.attention_data import attention_model
from profiles.silicon.baselines import roofline_s, three_constants
from profiles.silicon.fit_attention import decode_calls, held_out_calls, prefill_calls
from profiles.silicon.measured import Covariance, misses
from profiles.silicon.regimes import Accuracy, attention_regimes, by_regime
from profiles.silicon.tables import DecodeTable, PrefillTable, decode_tables, prefill_tables

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]

# How alike the misses of two calls are, over doublings of batch, group, KV heads, head size, prompt, prefix and window.
# Chosen once for all tables of A100 and H100: a choice for each takes a minute and is no better on shapes kept out.
_COVARIANCE = {
    "decode": Covariance((4.0, 2.0, 2.0, 0.5, 4.0, 4.0, 2.0), 0.03),
    "prefill": Covariance((4.0, 2.0, 4.0, 0.5, 4.0, 4.0, 2.0), 0.1),
}


@dataclass(frozen=True, slots=True)
class AttentionReport:
    """The errors of one framework's table on the shapes kept out of every fit, by regime.

    formula          the shipped model, of the GPU and framework that `fitted_on` names
    backed           the same, corrected by this table's other shapes; None where that was not asked for
    roofline         arithmetic or traffic by the data sheet, whichever is longer
    three_constants  the same with a launch and two shares of the sheet's rates fitted to this table's other shapes
    """

    framework: str
    version: str
    phase: str
    fitted_on: str
    formula: dict[str, Accuracy]
    backed: dict[str, Accuracy] | None
    roofline: dict[str, Accuracy]
    three_constants: dict[str, Accuracy]


def attention_reports(directory: Path, sheet: GpuSheet, backed: bool) -> Iterator[AttentionReport]:
    """A report for every attention table below a directory; InputError where there is none or one is broken.

    `backed` asks for the formula corrected by the tables as well.
    """
    tables: list[DecodeTable | PrefillTable] = [*decode_tables(directory).tables, *prefill_tables(directory).tables]
    for table in tables:
        yield attention_report(table, sheet, backed)


def attention_roofline(sheet: GpuSheet, calls: Calls) -> tuple[Floats, Floats]:
    """Seconds of arithmetic, and of traffic with queries, output, keys and values moved once.

    Arithmetic counts the keys each query sees: half of them in a causal prompt.
    """
    # Query i of a prompt sees prefix + i + 1 keys until that fills the window, and the window's from then on.
    window = np.where(calls.window > 0, calls.window, calls.context)
    rising = np.clip(window - calls.prefix, 0, calls.prompt)
    keys = rising * calls.prefix + rising * (rising + 1) / 2 + (calls.prompt - rising) * window
    flop = 4 * calls.batch * calls.q_heads * calls.head_dim * keys
    return flop / sheet.rate("bf16"), (calls.kv_bytes + 2 * calls.query_bytes) / sheet.memory_bytes_per_s


def attention_report(table: DecodeTable | PrefillTable, sheet: GpuSheet, backed: bool = True) -> AttentionReport:
    """The report of one table."""
    if isinstance(table, DecodeTable):
        phase, calls = "decode", decode_calls(table)
    else:
        phase, calls = "prefill", prefill_calls(table)
    model = attention_model(sheet, table.framework)
    measured_s = table.latency_s
    kept = held_out_calls(calls)
    formula_s = model.model.latency_s(sheet, calls)
    flop_s, byte_s = attention_roofline(sheet, calls)
    constants = three_constants(flop_s[~kept], byte_s[~kept], measured_s[~kept])
    regimes = attention_regimes(calls.kv_bytes[kept], sheet.l2_bytes)

    def errors(predicted_s: Floats) -> dict[str, Accuracy]:
        return by_regime(predicted_s[kept], measured_s[kept], regimes)

    return AttentionReport(
        framework=table.framework,
        version=table.version,
        phase=phase,
        fitted_on=f"{model.fitted_on}, {model.framework}",
        formula=errors(formula_s),
        backed=errors(_backed_s(calls, measured_s, formula_s, kept, _COVARIANCE[phase])) if backed else None,
        roofline=errors(roofline_s(flop_s, byte_s)),
        three_constants=errors(constants.latency_s(flop_s, byte_s)),
    )


def _backed_s(calls: Calls, measured_s: Floats, formula_s: Floats, kept: Mask, covariance: Covariance) -> Floats:
    """The formula corrected by the shapes that are not kept out, among those of the same types."""
    sizes = np.stack(
        [
            calls.batch,
            calls.group,
            calls.kv_heads,
            calls.head_dim,
            calls.prompt,
            calls.prefix + 1,
            calls.window + 1,
        ],
        axis=1,
    ).astype(np.float64)
    backed_s = formula_s.copy()
    types = calls.kv_bits * 100 + calls.compute_bits
    for one in np.unique(types):
        rows = types == one
        if not (rows & ~kept).any():
            continue
        known = misses(sizes[rows & ~kept], measured_s[rows & ~kept], formula_s[rows & ~kept], covariance)
        backed_s[rows & kept] *= known.factor(sizes[rows & kept])
    return backed_s
