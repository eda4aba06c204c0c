"""Which row ships: limits and objectives are judged by what was measured where that is the target's own figure."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from planner.compile.retreat import NOISE, Shipped, shipped
from planner.errors import VerificationFailed
from planner.goal import Goal, Limits, Objective
from planner.plan import Costs, Interval, Plan
from planner.report import Row
from planner.serde import load_file
from planner.spec import LayerSpec, ModelSpec

PLAN = load_file(Path(__file__).parent / "plans" / "v1.yaml", Plan)
SPEC = ModelSpec("toy", "toy", "", 64, 320, 4096, (LayerSpec(2, 2, 32),), (), 0)
KV_BYTES = 2048 * 2 * 32 * 2 * 2
"""Of that model's cache at 16 bits."""

Seconds = tuple[float, float]
"""Predicted and measured."""


def around(value: float) -> Interval:
    """An interval so wide that its ends never decide the right thing."""
    return Interval(value, value / 2, value * 2)


def row(
    name: str, decode_s: Seconds = (1, 1), ttft_s: Seconds = (1, 1), loss_nats: float = 0.01, local: bool = True
) -> Row:
    """A plan that ran; its memory is predicted as 10 bytes, of which 6 are measured."""
    both = [
        Costs("", KV_BYTES // 4, 5, memory, around(loss_nats), around(decode), around(ttft))
        for memory, decode, ttft in zip((10, 6), decode_s, ttft_s, strict=True)
    ]
    plan = replace(PLAN, name=name, predicted=both[0], measured=both[1], quality_verified=True, speed_measured=local)
    return Row(name, plan)


def ships(rows: Sequence[Row], minimise: Objective = "loss_nats", **limits: float) -> Shipped:
    goal = Goal(minimise, Limits(**limits))  # type: ignore[arg-type]
    return shipped([replace(each, plan=replace(each.plan, goal=goal)) for each in rows], goal, SPEC)


def timed(name: str, predicted: float, measured: float, figure: str, local: bool) -> Row:
    """A row with these seconds for one figure; the other is the same for all."""
    seconds = (predicted, measured)
    return row(name, decode_s=seconds, local=local) if figure == "decode_s" else row(name, ttft_s=seconds, local=local)


FIGURES = pytest.mark.parametrize("figure", ["decode_s", "ttft_s"])


# --- limits -------------------------------------------------------------------------------------


@FIGURES
def test_a_limit_on_seconds_is_kept_by_the_measured_median_on_this_machine(figure: str) -> None:
    rows = [timed("dense", 3, 0.9, figure, True), timed("planned", 1, 2.5, figure, True)]
    found = ships(rows, **{figure: 2.5})
    assert (found.row.name, found.why) == ("planned", "")
    found = ships(rows, **{figure: 2.0})
    assert (found.row.name, found.why) == ("dense", f"the plan took a {figure} of 2.5 where at most 2 was asked")
    with pytest.raises(VerificationFailed, match=rf"{figure} of 2.5 where at most 0.5 .*; loosen goal.limits.{figure}"):
        ships(rows, **{figure: 0.5})


@FIGURES
def test_a_limit_on_seconds_of_another_machine_is_kept_by_prediction(figure: str) -> None:
    rows = [timed("dense", 3, 0.9, figure, False), timed("planned", 1, 2.5, figure, False)]
    assert ships(rows, **{figure: 1.0}).row.name == "planned"
    with pytest.raises(VerificationFailed, match=f"{figure} of 1 where at most 0.95"):
        ships(rows, **{figure: 0.95})


def test_noise_is_no_excuse_for_a_limit() -> None:
    rows = [row("dense", (1, 1)), row("planned", (1, 1 + NOISE / 10))]
    assert ships(rows, decode_s=1.0).row.name == "dense"


@pytest.mark.parametrize("local", [True, False])
def test_a_limit_on_memory_is_kept_by_prediction_everywhere(local: bool) -> None:
    rows = [row("planned", local=local)]
    assert ships(rows, memory_bytes=10).row.name == "planned"
    with pytest.raises(VerificationFailed, match="memory_bytes of 10 where at most 9"):
        ships(rows, memory_bytes=9)


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({"loss_nats": 0.01}, True),
        ({"loss_nats": 0.0099}, False),
        ({"kv_bytes": KV_BYTES // 4}, True),
        ({"kv_share": 0.25}, True),
        ({"kv_share": 0.24}, False),
        ({"weight_bytes": 4}, False),
    ],
)
def test_other_limits_are_kept_by_measurement_on_any_machine(limits: dict[str, float], kept: bool) -> None:
    for local in (True, False):
        if kept:
            assert ships([row("planned", local=local)], **limits).why == ""
        else:
            with pytest.raises(VerificationFailed, match=next(iter(limits))):
                ships([row("planned", local=local)], **limits)


# --- objectives ---------------------------------------------------------------------------------


@FIGURES
@pytest.mark.parametrize(
    ("uniform", "name"),
    [(1.0, "planned"), (1 - 0.9 * NOISE, "planned"), (1 - 1.1 * NOISE, "uniform"), (0.1, "uniform")],
)
def test_measured_seconds_of_this_machine_decide_beyond_noise(figure: Objective, uniform: float, name: str) -> None:
    rows = [timed("dense", 3, 3, figure, True), timed("uniform", 2, uniform, figure, True)]
    found = ships([*rows, timed("planned", 1, 1, figure, True)], figure)
    assert found.row.name == name
    assert found.why == ("" if name == "planned" else f"it measured a lower {figure} than the plan")


@FIGURES
def test_measured_seconds_decide_nothing_for_another_machine(figure: Objective) -> None:
    rows = [timed("dense", 3, 3, figure, False), timed("uniform", 2, 0.1, figure, False)]
    assert ships([*rows, timed("planned", 1, 1, figure, False)], figure).row.name == "planned"
    rows = [timed("uniform", 0.99, 3, figure, False), timed("planned", 1, 1, figure, False)]
    assert ships(rows, figure).why == f"it is predicted a lower {figure} than the plan"


def test_a_measured_loss_decides_however_small_the_difference() -> None:
    rows = [row("dense"), row("uniform", loss_nats=0.00999), row("planned")]
    assert ships(rows).why == "it measured a lower loss_nats than the plan"
    assert ships(rows[::-1]).row.name == "uniform"


def test_a_uniform_setting_that_breaks_a_limit_does_not_ship_however_fast() -> None:
    rows = [row("uniform", (1, 0.1), ttft_s=(1, 3)), row("planned", (1, 1), ttft_s=(5, 2))]
    assert ships(rows, "decode_s", ttft_s=2.0).row.name == "planned"


def test_the_uniform_setting_is_retreated_to_before_dense() -> None:
    rows = [row("dense", (1, 1)), row("uniform", (1, 1.9)), row("planned", (1, 3))]
    assert ships(rows, decode_s=2.0).row.name == "uniform"
