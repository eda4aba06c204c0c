"""An artefact's place holds the old artefact or the new one, whenever a run is killed, and nothing stays beside it."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree

import pytest

from planner.artefact import MANIFEST, Header, manifest, writable, write
from planner.errors import InputError
from planner.executor import Artifact

HEADER = Header("none", "0", "", "0")

WRITE = f"""
import sys
from pathlib import Path
from planner.artefact import Header, write
from planner.executor import Artifact

write(Path(sys.argv[1]), [Artifact(name, sys.argv[2].encode()) for name in ("a", "b/c")], Header(*{
    (HEADER.runtime, HEADER.runtime_version, HEADER.plan_sha256, HEADER.planner_version)
}))
"""

KILLED = """
import os, signal, sys

left = int(sys.argv[3])

def watch(event, args):
    global left
    if event in ("os.rename", "shutil.rmtree", "os.remove", "os.rmdir"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

import planner.artefact
sys.addaudithook(watch)
"""

HELD = """
import sys, time
from pathlib import Path
from planner.artefact import Header, write
from planner.executor import Artifact

def check(new):
    print(new.name, flush=True)
    sys.stdin.readline()

write(Path(sys.argv[1]), [Artifact("a", b"theirs")], Header("none", "0", "", "0"), check)
"""


def put(place: Path, text: str) -> None:
    write(place, [Artifact(name, text.encode()) for name in ("a", "b/c")], HEADER)


def whole(place: Path) -> str:
    """The text of an artefact that `put` wrote, after it was seen to be all there."""
    assert sorted(manifest(place).files) == ["a", "b/c"]
    (text,) = {(place / name).read_text() for name in ("a", "b/c")}
    return text


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def kill_at(place: Path, text: str, step: int) -> bool:
    """Write in another process that kills itself as it is about to rename or remove for the so-manieth time."""
    command = [sys.executable, "-c", KILLED + WRITE, str(place), text, str(step)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode != 0


# --- killed -------------------------------------------------------------------------------------


def test_a_run_killed_between_any_two_steps_loses_nothing(tmp_path: Path) -> None:
    """Steps: the old one away, the new one in, the old one given up, and its files removed one by one."""
    states = []
    for step in range(1, 100):
        place = tmp_path / str(step) / "out"
        put(place, "old")
        if not kill_at(place, "new", step):
            assert (whole(place), names(place.parent)) == ("new", ["out"])
            break
        states.append(place.exists())
        writable(place)
        found = whole(place)
        assert found == ("old" if step <= 2 else "new")
        assert names(place.parent) == ["out"]
    # Killed before the second rename nothing is in the place: that is the state to come back from.
    assert len(states) >= 7 and [step for step, there in enumerate(states, 1) if not there] == [2]


@pytest.mark.parametrize("step", [1, 2, 3, 4])
def test_the_next_write_needs_nobody_to_tidy_up(step: int, tmp_path: Path) -> None:
    place = tmp_path / "out"
    put(place, "old")
    assert kill_at(place, "new", step)
    put(place, "newer")
    assert (whole(place), names(tmp_path)) == ("newer", ["out"])


def test_a_first_run_that_was_killed_leaves_nothing_beside_the_second(tmp_path: Path) -> None:
    place = tmp_path / "out"
    assert kill_at(place, "new", 1)
    assert len(names(tmp_path)) == 1 and not place.exists()
    put(place, "newer")
    assert (whole(place), names(tmp_path)) == ("newer", ["out"])


# --- states on disk -----------------------------------------------------------------------------


def test_an_old_artefact_is_put_back_where_a_write_is_refused(tmp_path: Path) -> None:
    place, old = tmp_path / "a [b]*", tmp_path / ".a [b]*.0123abcd.old"
    put(place, "old")
    place.rename(old)
    (old / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match=r"notes\.txt"):
        put(place, "new")
    assert whole(place) == "old" and (place / "notes.txt").read_text() == "mine"


def test_of_several_old_artefacts_none_is_put_back_nor_lost(tmp_path: Path) -> None:
    place = tmp_path / "out"
    put(place, "old")
    copytree(place, tmp_path / ".out.00000000.old")
    place.rename(tmp_path / ".out.ffffffff.old")
    before = names(tmp_path)
    writable(place)
    assert names(tmp_path) == before
    put(place, "new")
    assert (whole(place), names(tmp_path)) == ("new", ["out"])


def test_an_empty_place_is_no_reason_to_remove_the_old_artefact(tmp_path: Path) -> None:
    place, old = tmp_path / "out", tmp_path / ".out.0123abcd.old"
    put(place, "old")
    place.rename(old)
    place.mkdir()
    writable(place)
    assert whole(old) == "old"


def test_what_is_not_named_and_made_as_ours_is_left_alone(tmp_path: Path) -> None:
    place, elsewhere = tmp_path / "out", tmp_path / "elsewhere"
    put(place, "old")
    copytree(place, elsewhere)
    kept = [".out.0123abcd.old", ".out.0123ABCD.tmp", ".out.123abcd.tmp", ".out.0123abcde.tmp", "out.0123abcd.tmp"]
    kept += [".other.0123abcd.tmp", ".out.0123abcd.new", ".out.tmp", ".out.xxxxxxxx.tmp"]
    for name in kept:
        (tmp_path / name).mkdir()  # the first has no manifest
        (tmp_path / name / "file").write_text("mine")
    copytree(place, tmp_path / ".outer.0123abcd.old")
    (tmp_path / ".out.00000001.tmp").write_text("mine")
    (tmp_path / ".out.00000002.tmp").symlink_to(elsewhere)
    (tmp_path / ".out.00000003.old").symlink_to(elsewhere)
    before = names(tmp_path)
    for name in (".out.89abcdef.tmp", ".out.01234567.old"):
        copytree(place, tmp_path / name)
    (tmp_path / ".out.89abcdef.tmp" / MANIFEST).unlink()
    writable(place)
    assert names(tmp_path) == before
    put(place, "new")
    assert names(tmp_path) == before and whole(elsewhere) == "old"


@pytest.mark.parametrize("name", [".out.0123abcd.old", ".out.0123abcd.tmp"])
def test_neither_a_foreign_old_directory_nor_unfinished_work_is_put_back(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir()
    writable(tmp_path / "out")
    assert names(tmp_path) == [name]


# --- two at once --------------------------------------------------------------------------------


@contextmanager
def held(place: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Another run in the middle of writing, and the name of what it writes; it goes on when its input ends."""
    command = [sys.executable, "-c", HELD, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        yield run, run.stdout.readline().strip()


def test_what_another_run_is_writing_is_no_leftover(tmp_path: Path) -> None:
    place = tmp_path / "out"
    put(place, "old")
    with held(place) as (run, name):
        writable(place)
        put(place, "ours")
        assert names(tmp_path) == [name, "out"] and whole(place) == "ours"
        run.communicate()
    assert run.returncode == 0
    assert (place / "a").read_text() == "theirs" and names(tmp_path) == ["out"]


def test_what_a_killed_run_was_writing_is_a_leftover_at_once(tmp_path: Path) -> None:
    place = tmp_path / "out"
    put(place, "old")
    with held(place) as (run, name):
        run.kill()
        run.communicate()
    assert names(tmp_path) == [name, "out"]
    writable(place)
    assert (whole(place), names(tmp_path)) == ("old", ["out"])
