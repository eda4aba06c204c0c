"""Target files: every one loads, every figure has a source, and a wrong file is refused in one line."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from planner.errors import InputError
from planner.hardware import HardwareProfile, MemoryTier
from planner.serde import dump
from planner.spec import ModelSpec
from profiles.targets import DIRECTORY, gpu_sheet, hardware_profile_from_yaml, target, targets

A100 = (DIRECTORY / "a100.yaml").read_text()


@pytest.mark.parametrize("name", targets())
def test_a_target_loads_and_every_figure_has_its_source(name: str) -> None:
    profile = target(name)
    assert (profile.name, profile.provenance) == (name, "datasheet")
    assert (profile.operators is not None) == (profile.kind == "gpu")
    assert (0.1 < profile.error < 0.6 if profile.operators else profile.error >= 0.4) and profile.efficiency < 1
    # Four figures of a machine, one each of its types, two or three a tier.
    assert len(profile.sources) >= 5 + len(profile.matmul_flop_per_s) + 2 * len(profile.tiers)
    assert all(len(source.split(": ", 1)[1]) > 20 for source in profile.sources)
    assert "found" not in profile.notes[0] and profile.notes[0]


@pytest.mark.parametrize("name", targets())
def test_tiers_are_listed_fastest_first_and_float_width_fits_the_kind(name: str) -> None:
    profile = target(name)
    rates = [tier.read_bytes_per_s for tier in profile.tiers]
    assert rates == sorted(rates, reverse=True)
    assert [t.name for t in profile.tiers] == (["hbm"] if profile.kind == "gpu" else []) + ["dram", "flash"]
    assert profile.float_bits == (16 if profile.kind == "gpu" else 32)


def test_the_promised_machines_are_there() -> None:
    promised = "a100-40gb a100 h100 h100-pcie h200 b200 l40s l4 a10 rtx3090 rtx4090 mi300x mi355x"
    assert set(targets()) == {*promised.split(), "laptop-cpu", "server-cpu", "phone"}


def test_throughputs_are_dense() -> None:
    rates = {name: dict(target(name).matmul_flop_per_s)["bf16"] for name in ("a100", "h100", "l4", "rtx3090")}
    assert rates == {"a100": 312e12, "h100": 989e12, "l4": 121e12, "rtx3090": 71e12}


@pytest.mark.parametrize(("typed", "near"), [("h10", "h100"), ("A100", "a100"), ("rtx-4090", "rtx4090")])
def test_an_unknown_target_names_the_nearest_and_all(typed: str, near: str) -> None:
    with pytest.raises(
        InputError, match=rf"unknown target '{typed}'; did you mean '{near}'\? known: a10, .*server-cpu"
    ):
        target(typed)


def test_a_name_like_no_other_lists_what_there_is() -> None:
    with pytest.raises(InputError, match=r"unknown target 'zzz'; known: a10, .*; or give 'local', or a target's YAML"):
        target("zzz")


def test_a_user_s_own_file_is_a_target(tmp_path: Path) -> None:
    path = tmp_path / "ours.yaml"
    path.write_text(A100)
    ours, theirs = target(str(path)), target("a100")
    # A GPU of another name was measured by nobody: operators are carried over, with the error that has.
    assert ours.error > theirs.error
    assert replace(ours, error=theirs.error, operators=theirs.operators) == replace(theirs, name="ours")


def test_a_measured_profile_dumped_to_a_file_is_a_target(tmp_path: Path) -> None:
    measured = HardwareProfile(
        name="local",
        kind="cpu",
        float_bits=32,
        tiers=(MemoryTier("dram", 10**10, 1.25e10), MemoryTier("flash", 10**11, 6e8, ((4096, 3e7), (2**22, 6e8)))),
        matmul_flop_per_s=(("fp32", 4.2e10),),
        layer_overhead_s=1e-5,
        step_overhead_s=1e-4,
        kernel_overhead_s=1e-5,
        provenance="measured",
        error=0.25,
        sources=("this machine",),
        date="2026-11-21",
        expand_weights_per_s=((2.0, 1e9), (4.0, 2e9)),
        notes=("quiet",),
    )
    path = tmp_path / "local.yaml"
    path.write_text(dump(measured))
    assert hardware_profile_from_yaml(path) == measured


def test_the_identity_is_of_the_figures_not_of_the_layout(tmp_path: Path) -> None:
    path = tmp_path / "a100.yaml"
    path.write_text("# the same machine\n" + A100.replace("2.039e12", "2039000000000"))
    assert dump(target(str(path))) == dump(target("a100"))
    path.write_text(A100.replace("2.039e12", "2.038e12"))
    assert dump(target(str(path))) != dump(target("a100"))


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ("kernel_overhead_s:", "kernel_overheads:", r"\$\.kernel_overheads: unknown field; did you mean 'kernel_over"),
        ("2.039e12", "2.039 TB/s", r"\$\.tiers\[0\]\.read_bytes_per_s\.value: .*'2.039 TB/s'"),
        ("2.039e12", "-2.039e12", r"tier hbm: read_bytes_per_s: found -2039000000000.0; must be a positive"),
        ("80.0e9", "80.5", r"tier hbm: capacity_bytes: found 80.5; must be a whole number of bytes"),
        ("bf16:", "bf61:", r"\$\.matmul_flop_per_s\.bf61: unknown field; did you mean 'bf16'"),
        ("name: hbm", "name: hmb", r"\$\.tiers\[0\]\.name: .*hbm"),
        ("12, source: sheet", "12, source: shet", r"source: 'shet' is not listed under sources; did you mean 'sheet'"),
        ("source: calls", "source: latency", r"\$\.sources\.calls: no figure cites it"),
        ("kind: gpu", "kind: !!python/object:os.system gpu", "line 3: tags are not taken"),
        ("planner/target@1", "planner/target@9", r"\$\.schema: expected planner/target@1"),
        ("  bf16:", "  fp8:", "no rate for 16-bit"),
        ("name: dram", "name: hbm", "each name once"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path: Path, was: str, becomes: str, said: str) -> None:
    assert was in A100
    path = tmp_path / "mine.yaml"
    path.write_text(A100.replace(was, becomes))
    with pytest.raises(InputError, match=said) as refused:
        target(str(path))
    assert str(refused.value).startswith(f"{path}: ") and "\n" not in str(refused.value)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.yaml: cannot be read"):
        target(str(tmp_path / "none.yaml"))


def test_a_document_of_another_kind_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.yaml"
    path.write_text(dump(ModelSpec("toy", "", "", 1, 1, 1, (), (), 0)))
    with pytest.raises(InputError, match=r"\$\.schema: expected planner/target@1, found 'planner/model-spec@1'"):
        hardware_profile_from_yaml(path)


@pytest.mark.parametrize("name", [name for name in targets() if target(name).kind == "gpu"])
def test_a_gpu_s_chip_reaches_its_throughput_at_its_clock(name: str) -> None:
    """Dense bf16 flop a clock and unit is a power of two on every chip, but for rounding in the sheets."""
    sheet = gpu_sheet(name)
    each = sheet.rate("bf16") / sheet.sm_count / sheet.boost_hz
    nearest = 2 ** round(math.log2(each))
    assert abs(each / nearest - 1) < 0.03, each
    assert sheet.memory_bytes_per_s == target(name).fastest.read_bytes_per_s


def test_a_target_without_a_chip_has_no_sheet() -> None:
    with pytest.raises(InputError, match=r"server-cpu.yaml: \$.chip: is missing"):
        gpu_sheet("server-cpu")
