"""What counts as slower: beyond the tolerance and the figure's own spread; and whose figures may be compared."""

from dataclasses import replace
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.drift import Drift, compare, refuse_unlike, slower_than, tolerance
from planner.errors import InputError
from planner.hardware import HardwareProfile, MemoryTier
from planner.junit import junit
from planner.measured import Curve, Machine, Unit, count

MACHINE = Machine("cpu", "a CPU", 2, "onnxruntime", ("onnxruntime 1",), "/data", False, 0.1, 0.0, 3)
STEP = Curve("decoder step", "s", "layers", ((1, 1e-3, 0.0), (17, 1e-2, 0.0)))
READ = Curve("memory read", "bytes/s", "bytes", ((4096, 1e10, 0.0),))
PROFILE = HardwareProfile(
    name="local",
    kind="cpu",
    float_bits=32,
    tiers=(MemoryTier("dram", 10**10, 1e10),),
    matmul_flop_per_s=(("fp32", 1e11),),
    layer_overhead_s=0.0,
    step_overhead_s=0.0,
    kernel_overhead_s=0.0,
    provenance="measured",
    error=0.25,
    sources=("made up",),
    date="2026-01-01",
    machine=MACHINE,
    curves=(STEP, READ),
)


def with_curves(*curves: Curve, machine: Machine = MACHINE) -> HardwareProfile:
    return replace(PROFILE, curves=curves, machine=replace(machine, figures=count(curves)))


def times_as_long(factor: float, spread: float = 0.0) -> HardwareProfile:
    """The profile of the machine when everything takes so many times as long."""
    return with_curves(
        replace(STEP, points=tuple((at, seconds * factor, spread) for at, seconds, _ in STEP.points)),
        replace(READ, points=tuple((at, rate / factor, spread) for at, rate, _ in READ.points)),
    )


def drift(now: HardwareProfile, share: float = 0.1, before: HardwareProfile = PROFILE) -> Drift:
    return compare(before, now, share, "baseline.yaml")


def test_a_machine_is_like_itself() -> None:
    same = drift(PROFILE)
    assert (len(same.moves), same.slower, same.faster, same.left_out, same.changed) == (3, (), (), (), ())


@given(st.floats(0.01, 100), st.floats(0.0, 3), st.floats(0.001, 10))
def test_times_and_rates_are_judged_alike(factor: float, spread: float, share: float) -> None:
    found = drift(times_as_long(factor, spread), share)
    verdicts = {move.verdict for move in found.moves}
    assert len(verdicts) == 1
    allowed = 1 + share + spread
    if factor > allowed * 1.001:
        assert verdicts == {"slower"}
    elif factor < 0.999 / allowed:
        assert verdicts == {"faster"}
    elif 1.001 / allowed < factor < allowed * 0.999:
        assert verdicts == {"same"}


def test_the_wider_spread_of_the_two_widens() -> None:
    assert drift(times_as_long(1.2)).slower
    assert not drift(times_as_long(1.2, spread=0.15)).slower
    assert not drift(times_as_long(1.2), before=times_as_long(1.0, spread=0.15)).slower
    assert "their own spread, which widens" in drift(PROFILE).as_text()


def test_what_is_timed_again_is_what_would_count() -> None:
    slower = slower_than(PROFILE, 0.1)
    assert slower("decoder step", 17, 1.2e-2, 0.0) and not slower("decoder step", 17, 1.2e-2, 0.15)
    assert slower("memory read", 4096, 0.8e10, 0.0) and not slower("memory read", 4096, 1.2e10, 0.0)
    assert not slower("memory read", 8192, 1.0, 0.0) and not slower("unknown", 1, 1.0, 0.0)


def test_the_worst_comes_first_and_the_table_says_both_values() -> None:
    now = with_curves(replace(STEP, points=((1, 2e-3, 0.0), (17, 5e-2, 0.05))), READ)
    found = drift(now)
    assert [move.name for move in found.slower] == ["decoder step at 17 layers", "decoder step at 1 layers"]
    first = found.as_text().splitlines()[1].split("  ")
    assert [part.strip() for part in first if part] == [
        "decoder step at 17 layers", "10 ms", "50 ms", "5.00", "1.15", "slower"
    ]  # fmt: skip
    (row, *_) = found.as_json()["moved"]  # type: ignore[misc]
    assert row["ratio"] == pytest.approx(5) and row["verdict"] == "slower"


def test_figures_without_a_counterpart_are_left_out_and_counted() -> None:
    found = drift(with_curves(STEP, Curve("new", "s", "tokens", ((1, 1.0, 0.0),))))
    assert found.left_out == ("memory read at 4096 bytes", "new at 1 tokens")
    assert "2 figures not compared" in found.as_text()


def test_another_version_is_compared_and_told() -> None:
    newer = replace(MACHINE, software=("onnxruntime 2",))
    assert drift(replace(PROFILE, machine=newer)).changed == ("software: onnxruntime 1 -> onnxruntime 2",)


def test_another_device_of_flash_is_not_compared() -> None:
    flash = Curve("flash random read, depth 1", "bytes/s", "bytes", ((4096, 1e8, 0.0),))
    before, now = with_curves(STEP, flash), with_curves(STEP, flash, machine=replace(MACHINE, flash="/other"))
    found = drift(now, before=before)
    assert len(found.moves) == 2 and found.changed == ("flash: /data -> /other, not compared",)
    assert len(drift(before, before=before).moves) == 3


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        (
            replace(MACHINE, processor="another"),
            r"\$\.machine\.processor: the baseline's is 'a CPU', here it is 'another",
        ),
        (replace(MACHINE, threads=64), r"\$\.machine\.threads: the baseline's is 2, here it is 64"),
        (replace(MACHINE, runtime="transformers"), r"\$\.machine\.runtime: .*'onnxruntime', here it is 'transformers'"),
        (replace(MACHINE, device="cuda"), r"\$\.machine\.device: the baseline's is 'cpu', here it is 'cuda'"),
        (replace(MACHINE, quick=True), r"\$\.machine\.quick: .*; give --quick to both or to neither"),
    ],
)
def test_a_baseline_of_something_else_is_refused(changed: Machine, said: str) -> None:
    with pytest.raises(InputError, match=rf"^baseline\.yaml: {said}"):
        refuse_unlike(PROFILE, changed, "baseline.yaml")
    with pytest.raises(InputError, match=said):
        drift(replace(PROFILE, machine=changed))


@pytest.mark.parametrize("profile", [replace(PROFILE, machine=None, curves=()), with_curves()])
def test_a_profile_that_nobody_timed_is_no_baseline(profile: HardwareProfile) -> None:
    with pytest.raises(InputError, match="holds no timed figures to compare with; write a baseline: planner profile"):
        refuse_unlike(profile, MACHINE, "baseline.yaml")


@pytest.mark.parametrize("figures", [2, 4, 0])
def test_a_profile_that_lost_figures_is_refused(figures: int) -> None:
    with pytest.raises(InputError, match=f"curves hold 3 of the {figures} figures that were measured"):
        replace(PROFILE, machine=replace(MACHINE, figures=figures))


def test_a_curve_comes_once() -> None:
    with pytest.raises(InputError, match="curve memory read: is given twice"):
        with_curves(READ, READ)


@pytest.mark.parametrize(
    "text", ["", "10", "0.1", "0%", "0.0%", "-5%", "nan%", "inf%", "1e3%", "10 percent", "10%%", "10001%", "%", "ten%"]
)
def test_a_tolerance_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="--tolerance: expected a percentage above 0% and at most 10000%"):
        tolerance(text)


@given(st.integers(1, 10000))
def test_every_percentage_is_a_tolerance(percent: int) -> None:
    assert tolerance(f"{percent}%") == percent / 100


def test_junit_has_a_case_for_each_figure() -> None:
    odd: Unit = "s"
    strange = Curve('a <b> & "c"', odd, "tokens", ((1, 1.0, 0.0),))
    before, now = (
        with_curves(STEP, strange, READ),
        with_curves(replace(STEP, points=((1, 1e-3, 0), (17, 1.0, 0))), strange),
    )
    found = drift(now, before=before)
    suite = ElementTree.fromstring(junit(found, "base<line>.yaml"))[0]
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("4", "1", "1")
    failed = [case for case in suite if case.find("failure") is not None]
    assert [(case.get("classname"), case.get("name")) for case in failed] == [("decoder step", "17 layers")]
    assert "100.000 times as long, allowed 1.100" in str(failed[0].find("failure").get("message"))  # type: ignore[union-attr]
    assert {case.get("classname") for case in suite} == {"decoder step", 'a <b> & "c"', "memory read"}
