"""Flash is read past the page cache, from a file that nobody sees, or left out with a reason."""

import os
from pathlib import Path

import pytest

from planner.errors import InputError
from profiles import flash
from profiles.flash import FEWEST_FILE_BYTES, FlashFile, NoFlash, file_system, flash_file, flash_pieces
from profiles.flash_tier import flash_directory, flash_tier, opened_flash
from profiles.record import Order, take


def silent(stage: str, done: int, of: int) -> None:
    """Nobody watches."""


@pytest.fixture
def file(tmp_path: Path) -> FlashFile:
    found = flash_file(tmp_path, FEWEST_FILE_BYTES)
    if isinstance(found, NoFlash):
        pytest.skip(found.reason)
    return found


def test_the_file_has_no_name_and_is_gone_when_closed(file: FlashFile, tmp_path: Path) -> None:
    assert list(tmp_path.iterdir()) == []
    assert os.fstat(file.descriptor).st_nlink == 0 and os.fstat(file.descriptor).st_size == file.size
    file.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(file.descriptor)


def test_reads_go_past_the_page_cache(file: FlashFile) -> None:
    import fcntl

    assert fcntl.fcntl(file.descriptor, fcntl.F_GETFL) & os.O_DIRECT
    with pytest.raises(OSError, match="Invalid argument"):
        os.preadv(file.descriptor, [bytearray(100)], 1)  # only whole blocks are read directly
    file.close()


def test_every_block_depth_and_pattern_has_its_rate(file: FlashFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flash, "BLOCK_S", 0.001)
    curves = {curve.name: curve for curve in take(list(flash_pieces(file, write=True, quick=False)), silent)}
    reads = {piece.curve for piece in flash_pieces(file, write=False, quick=False)}
    file.close()
    random = [f"flash random read, depth {depth}" for depth in (1, 2, 4, 8, 16, 32)]
    assert [name for name in curves if "random read" in name] == random
    assert [at for at, _, _ in curves[random[0]].points] == [2**power for power in range(12, 25, 2)]
    assert max(at for at, _, _ in curves[random[-1]].points) == 2**20  # 32 of them are 32 MiB; of 4 MiB, 128
    assert curves.keys() - reads == {name for name in curves if " write, " in name} != set()


def test_quick_measures_some_of_the_same_figures(file: FlashFile) -> None:
    every, some = (
        {(piece.curve, piece.at) for piece in flash_pieces(file, write=True, quick=quick)} for quick in (False, True)
    )
    file.close()
    assert some < every and {"flash random read, depth 1", "flash sequential read, depth 1"} <= {c for c, _ in some}


def test_a_block_that_comes_back_short_is_an_error(file: FlashFile) -> None:
    os.ftruncate(file.descriptor, file.size // 2 + 512)
    pieces = [
        one for one in flash_pieces(file, write=False, quick=True) if one.at == 2**24 and "sequential" in one.curve
    ]
    with pytest.raises(OSError, match="came back short"):
        take(pieces, silent)
    file.close()


def test_memory_that_looks_like_a_disk_is_not_flash(tmp_path: Path) -> None:
    shared = Path("/dev/shm")
    if not shared.is_dir() or file_system(shared) not in flash.IN_MEMORY:
        pytest.skip("no file system in memory here")
    found = flash_file(shared)
    assert isinstance(found, NoFlash) and "lives in memory" in found.reason
    from contextlib import ExitStack

    with ExitStack() as stack:
        notes, none = opened_flash(Order(shared, silent), stack)
        assert none is None and notes == [f"no flash tier: {found.reason}"]
        assert flash_tier(none, {}) == () and flash_directory(Order(shared, silent), none) == ""
        with pytest.raises(InputError, match=r"--flash /dev/shm: /dev/shm is on \w+, which lives in memory; give a"):
            opened_flash(Order(tmp_path, silent, flash=shared), stack)


def test_a_device_too_full_to_read_from_is_left_out(tmp_path: Path) -> None:
    found = flash_file(tmp_path, file_bytes=FEWEST_FILE_BYTES - 1)
    assert isinstance(found, NoFlash) and "too few to read from" in found.reason


@pytest.mark.parametrize("name", ["missing", "file"])
def test_what_is_no_directory_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="is not a directory"):
        flash_file(tmp_path / name)


def test_a_directory_that_may_not_be_written_in_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("this user may write anywhere")
    with pytest.raises(InputError, match="cannot be measured: Permission denied"):
        flash_file(tmp_path)
