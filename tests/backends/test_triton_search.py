"""Kernels compiled ahead of time: what does not run well is dropped with its reason, the rest is ranked and kept."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.triton.chips import CHIPS, chip, occupancy
from backends.triton.predicted import Gpu, Work, gpu, seconds, waves
from backends.triton.report import Resources
from backends.triton.search import (
    ALIKE,
    FoundKernel,
    KeptLaunch,
    KeptVariant,
    Search,
    Use,
    Variant,
    shared,
    use,
)
from backends.triton.sources import KERNELS, closure, source_sha256
from planner.errors import InputError
from profiles.targets import target

HERE = Path(__file__).parent
SQUARE = use("product", {"rows": 256, "inner": 512, "cols": 512})
ROW = use("product", {"rows": 1, "inner": 512, "cols": 512})


def silent(stage: str, done: int, of: int) -> None:
    """Progress that nobody watches."""


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of kernels with one small one."""
    folder = tmp_path_factory.mktemp("small") / "kernels"
    shutil.copytree(HERE / "kernels", folder, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("contract", "checking", "counting", "numerics", "planned"):
        shutil.copy(KERNELS / f"{name}.py", folder)
    return folder


@pytest.fixture(scope="session")
def searched(small: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Search, FoundKernel]:
    """A search for an A100, and what it found."""
    search = Search(gpu(target("a100")), tmp_path_factory.mktemp("kernels"), small)
    return search, search.run([SQUARE], silent)[SQUARE]


def test_what_does_not_run_well_is_dropped_with_its_reason(searched: tuple[Search, FoundKernel]) -> None:
    _, found = searched
    assert [dict(each.variant.tiles)["BLOCK_M"] for each in found.dropped] == [128, 32, 24]
    spills, large, broken = (each.reason for each in found.dropped)
    assert re.fullmatch(r"spills \d+ bytes of a thread's registers", spills)
    assert re.fullmatch(r"takes \d+ bytes of shared memory; sm_80 has 166912", large)
    assert broken == "does not compile: arange's range must be a power of 2"


def test_what_is_kept_spills_nothing_and_is_ranked(searched: tuple[Search, FoundKernel]) -> None:
    search, found = searched
    assert found.ranked == len(found.kept) == 2
    assert sorted(found.kept, key=lambda each: each.predicted_s) == list(found.kept)
    for each in found.kept:
        (launch,) = each.launches
        taken = launch.resources
        assert taken.spilled_bytes == 0 and 16 <= taken.registers <= 255
        assert taken.occupancy == occupancy(chip("sm_80"), taken.warps, taken.registers, taken.shared_bytes)
        binary = search.store.binary(launch.key)
        assert binary is not None and binary[0].startswith(b"\x7fELF") and b".target sm_80" in binary[1]


def test_what_was_found_is_read_back_and_nothing_compiled(searched: tuple[Search, FoundKernel]) -> None:
    search, found = searched
    before = {path: path.stat().st_mtime_ns for path in search.directory.rglob("*")}
    assert search.run([SQUARE], silent)[SQUARE] == found
    assert {path: path.stat().st_mtime_ns for path in search.directory.rglob("*")} == before


def test_a_binary_that_is_not_what_was_kept_is_compiled_again(searched: tuple[Search, FoundKernel]) -> None:
    search, found = searched
    key = found.kept[0].launches[0].key
    (path,) = search.directory.rglob(f"{key}.bin")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1])
    assert search.run([SQUARE], silent)[SQUARE] == found
    assert path.read_bytes() == whole


def test_where_binaries_are_gone_only_the_best_are_compiled_again(
    searched: tuple[Search, FoundKernel], tmp_path: Path
) -> None:
    search, found = searched
    moved = Search(search.gpu, tmp_path / "moved", search.folder)
    shutil.copytree(search.directory / "found", moved.directory / "found")
    assert moved.run([SQUARE], silent)[SQUARE] == found
    best = {launch.key for launch in found.kept[0].launches}
    assert {path.stem for path in moved.store.directory.rglob("*.json")} == best
    # Beside another use the same may take another variant, whose binary is not there either.
    wide = use("product", {"rows": 256, "inner": 512, "cols": 640})
    together = moved.run([SQUARE, wide], silent)
    assert {each: kernel_binaries(moved, kernel) for each, kernel in together.items()} == {SQUARE: True, wide: True}


def kernel_binaries(search: Search, kernel: FoundKernel) -> bool:
    """Whether all binaries of the best variant are in the store."""
    return all(search.store.binary(key) is not None for key in kernel.kept[0].keys)


KEPT = st.lists(st.tuples(st.sampled_from("abcdef"), st.floats(1.0, 1.2)), min_size=1, max_size=4)


@given(st.lists(KEPT, min_size=1, max_size=8))
def test_what_is_predicted_alike_is_shared_and_nothing_is_lost(uses: list[list[tuple[str, float]]]) -> None:
    found = {use("product", {"rows": i}): kernel(kept) for i, kept in enumerate(uses)}
    fewer = shared(found)

    def loaded(kernels: dict[Use, FoundKernel]) -> set[str]:
        return {key for each in kernels.values() for key in each.kept[0].keys}

    assert list(fewer) == list(found) and len(loaded(fewer)) <= len(loaded(found)) and shared(found) == fewer
    for each, before in found.items():
        first, *_ = fewer[each].kept
        alike = [other for other in before.kept if other.keys == first.keys]
        assert min(other.predicted_s for other in alike) == first.predicted_s <= ALIKE * before.kept[0].predicted_s
        assert sorted(fewer[each].kept, key=str) == sorted(before.kept, key=str)


def kernel(kept: list[tuple[str, float]]) -> FoundKernel:
    """What was found of a use, by the keys and seconds of its variants."""
    taken = Resources(4, 56, 0, 4096, occupancy(chip("sm_80"), 4, 56, 4096))

    def variant(number: int, key: str, seconds: float) -> KeptVariant:
        launch = KeptLaunch("product_kernel", key, {}, {}, "product_kernel", Work(1, 1, 1, 1), taken, 1, seconds)
        return KeptVariant(Variant((("NUMBER", number),), 4, 2), seconds, (launch,))

    made = [variant(i, *each) for i, each in enumerate(sorted(kept, key=lambda each: each[1]))]
    return FoundKernel("product", "{}", "sm_80", tuple(made), len(made), ())


@pytest.mark.parametrize(("name", "assembly"), [("b200", b".target sm_100a"), ("mi300x", b"gfx942")])
def test_other_chips_are_compiled_for_without_them(small: Path, tmp_path: Path, name: str, assembly: bytes) -> None:
    search = Search(gpu(target(name)), tmp_path, small)
    found = search.run([ROW, use("product", {"rows": 0, "inner": 1, "cols": 1})], silent)
    (launch,) = found[ROW].kept[0].launches
    binary = search.store.binary(launch.key)
    assert binary is not None and binary[0].startswith(b"\x7fELF") and assembly in binary[1]
    refused = next(each for each in found.values() if not each.kept)
    assert refused.without == "rows: found 0; needs one or more"


INTERRUPTED = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # A shell's background jobs ignore it.
from backends.triton.predicted import gpu
from backends.triton.search import Search, use
from profiles.targets import target
search = Search(gpu(target("a100")), Path(sys.argv[1]), Path(sys.argv[2]))
search.run([use("product", {"rows": 256, "inner": 512, "cols": 512})], lambda *told: print(*told, flush=True))
time.sleep(60)  # However quick the search was, the signal finds the process there.
"""


def test_an_interrupted_search_leaves_whole_files_and_no_process(small: Path, tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parents[1])}
    command = [sys.executable, "-c", INTERRUPTED, str(tmp_path), str(small)]
    running = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    assert running.stdout is not None
    for line in running.stdout:
        if line.startswith("kernels compiled"):
            os.killpg(running.pid, signal.SIGINT)
            break
    _, told = running.communicate()
    assert running.returncode != 0 and "KeyboardInterrupt" in told
    deadline = time.monotonic() + 60
    while group_lives(running.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not group_lives(running.pid)
    for path in tmp_path.rglob("*.json"):
        json.loads(path.read_text(encoding="utf-8"))
        assert "dropped" in path.read_text(encoding="utf-8")
    assert not list(tmp_path.rglob("*.tmp"))


def group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


# --- what decides --------------------------------------------------------------------------------


def test_a_compilation_depends_on_what_its_module_imports_and_on_nothing_else(small: Path, tmp_path: Path) -> None:
    folder = tmp_path / "kernels"
    shutil.copytree(small, folder)
    assert closure(folder, "product") == ("contract", "numerics", "product")
    shas = []
    for name in ("counting", "contract"):
        with (folder / f"{name}.py").open("a", encoding="utf-8") as file:
            file.write("# more\n")
        source_sha256.cache_clear()
        shas.append(source_sha256(folder, "product"))
    assert shas[0] == source_sha256(small, "product") != shas[1]


def test_more_registers_or_memory_never_leave_room_for_more_programs() -> None:
    for each in CHIPS.values():
        for warps in (1, 2, 4, 8):
            by_registers = [occupancy(each, warps, registers, 0).programs for registers in range(16, 257, 8)]
            by_memory = [occupancy(each, warps, 32, kib * 1024).programs for kib in range(0, 240, 8)]
            assert by_registers == sorted(by_registers, reverse=True) and by_memory == sorted(by_memory, reverse=True)
            assert by_registers[0] * warps <= each.warps


@pytest.mark.parametrize(
    ("name", "warps", "registers", "shared", "programs", "limit"),
    [
        ("sm_80", 8, 64, 0, 4, "registers"),  # 8 warps x 32 x 64 = 16,384 of 65,536 registers
        ("sm_80", 4, 32, 48 * 1024, 3, "shared memory"),  # 49 KiB with what is reserved, of 164
        ("sm_89", 16, 32, 0, 3, "warps"),  # 48 warps
        ("gfx942", 4, 128, 0, 4, "registers"),  # 512 registers a lane: 4 waves of each of 4 SIMDs
        ("gfx942", 4, 64, 64 * 1024, 1, "shared memory"),
    ],
)
def test_occupancy_as_counted_by_hand(
    name: str, warps: int, registers: int, shared: int, programs: int, limit: str
) -> None:
    found = occupancy(chip(name), warps, registers, shared)
    assert (found.programs, found.limit) == (programs, limit)


GPU = Gpu("hundred", "sm_80", multiprocessors=100, bytes_per_s=1e12, flop_per_s=1e14, launch_s=0.0)


def test_a_grid_takes_as_long_as_its_slower_part_and_its_rounds() -> None:
    resources = Resources(4, 64, 0, 0, occupancy(chip("sm_80"), 4, 64, 0))
    at_once = 100 * resources.occupancy.programs
    assert waves(Work(at_once, 0, 0, 0), resources, GPU) == 1 and waves(Work(at_once + 1, 0, 0, 0), resources, GPU) == 2

    def taken(programs: int, read: int, flop: int) -> float:
        return seconds(Work(programs, read, 0, flop), resources, 4, 32, GPU)

    assert taken(at_once, 10**9, 0) == pytest.approx(1e-3)  # 1 GB at 1 TB/s
    assert taken(at_once, 0, 10**11) == pytest.approx(1e-3)  # 100 GFLOP at 100 TFLOP/s
    assert taken(50, 0, 10**11) == pytest.approx(2e-3)  # half the multiprocessors have nothing to do
    assert taken(1, 10**9, 0) > taken(10, 10**9, 0) > taken(at_once, 10**9, 0)  # one program cannot fill the bus


def test_a_machine_without_a_known_chip_is_told_so() -> None:
    with pytest.raises(InputError, match="target laptop-cpu: describes no chip"):
        gpu(target("laptop-cpu"))
    with pytest.raises(InputError, match=r"kernels are compiled for sm_80.*'sm_75'"):
        chip("sm_75")
