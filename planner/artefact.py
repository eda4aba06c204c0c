"""An artefact directory: written whole beside its place and renamed into it, its manifest with sha256 of every file.

Beside the place NAME a run keeps `.NAME.xxxxxxxx.tmp`, which it writes or removes, and `.NAME.xxxxxxxx.old`, what was
in the place before, until the new artefact is there. What a killed run leaves, the next one puts back or removes.
"""

import fcntl
import glob
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from planner.errors import InputError, TamperedArtifact
from planner.executor import Artifact
from planner.files import read_text
from planner.plan import Plan, sha256
from planner.serde import dump_json, load, load_file

MANIFEST = "manifest.json"
PLAN = "plan.yaml"
REPORT = "report.json"
LEFT_BY_PYTHON = "__pycache__"
TOKEN_BYTES = 4


@dataclass(frozen=True, slots=True)
class Header:
    """What the manifest says besides its files. The runtime is `none` where a plan has no weights to run."""

    runtime: str
    runtime_version: str
    plan_sha256: str
    planner_version: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """The document manifest.json: who wrote the artefact, for which runtime, and the sha256 of every other file."""

    runtime: str
    runtime_version: str
    planner_version: str
    plan_sha256: str
    files: Mapping[str, str]


def write(
    directory: Path, files: Iterable[Artifact], header: Header, check: Callable[[Path], None] = lambda new: None
) -> None:
    """Write an artefact. A killed run leaves the old directory or the new one; a foreign directory is never replaced.

    `check` sees the new directory before it takes its place; what it raises leaves the old one there.
    """
    with _refusals(directory):
        place = _replaceable(directory)
        new = _beside(place, "tmp")
        try:
            new.mkdir(parents=True)
            with _in_use(new):
                digests = {file.path: _put(file, new) for file in files}
                manifest = Manifest(
                    header.runtime,
                    header.runtime_version,
                    header.planner_version,
                    header.plan_sha256,
                    dict(sorted(digests.items())),
                )
                (new / MANIFEST).write_text(dump_json(manifest), encoding="utf-8")
                check(new)
                _swap(new, place)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        _sweep(place)


def _put(file: Artifact, directory: Path) -> str:
    """Write one file; its sha256."""
    content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
    path = directory / file.path
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return hashlib.sha256(content).hexdigest()


def _swap(new: Path, place: Path) -> None:
    """Put `new` where `place` is; interrupted in between, the old directory goes back."""
    if not place.exists():
        os.replace(new, place)
        return
    old = _beside(place, "old")
    os.replace(place, old)
    try:
        os.replace(new, place)
    except BaseException:
        if not place.exists():
            os.replace(old, place)
        raise
    gone = old.with_suffix(".tmp")  # half removed, it must not be taken for an artefact to put back
    os.replace(old, gone)
    shutil.rmtree(gone)


def _beside(place: Path, ending: str) -> Path:
    return place.with_name(f".{place.name}.{secrets.token_hex(TOKEN_BYTES)}.{ending}")


def _left(place: Path, ending: str) -> list[Path]:
    """The directories beside a place that are named as `_beside` names them."""
    pattern = glob.escape(f".{place.name}.") + "[0-9a-f]" * (2 * TOKEN_BYTES) + f".{ending}"
    return [path for path in sorted(place.parent.glob(pattern)) if path.is_dir() and not path.is_symlink()]


def _old(place: Path) -> list[Path]:
    """Artefacts that a killed run took out of their place."""
    return [path for path in _left(place, "old") if (path / MANIFEST).is_file()]


def _put_back(place: Path) -> None:
    """Put the old artefact back where a run was killed before the new one came; of several, none is known to be it."""
    if not place.exists() and len(old := _old(place)) == 1:
        os.replace(old[0], place)


def _sweep(place: Path) -> None:
    """Remove what killed runs left beside an artefact; what another run is writing stays."""
    if (place / MANIFEST).is_file():
        for path in (*_old(place), *(path for path in _left(place, "tmp") if not _is_in_use(path))):
            shutil.rmtree(path, ignore_errors=True)  # only tidying: what cannot be removed keeps nobody from writing


@contextmanager
def _in_use(directory: Path) -> Iterator[None]:
    """Hold a lock, which ends with the process however that ends: no other run takes the directory for a leftover."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks: then two runs had better not write to one place
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(handle)


def _is_in_use(directory: Path) -> bool:
    """Whether a living run holds the lock."""
    try:
        handle = os.open(directory, os.O_RDONLY)
    except OSError:  # gone meanwhile, or not ours to read and so not ours to remove
        return True
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(handle)
    return False


def writable(directory: Path) -> None:
    """InputError now rather than after minutes of measuring, where an artefact could not be written."""
    with _refusals(directory):
        place = _replaceable(directory)
        _sweep(place)
        parent = place.parent
        while not parent.exists():
            parent = parent.parent
        # Tried, not asked: root may write anywhere by its permissions, and still not into /proc.
        os.rmdir(tempfile.mkdtemp(prefix=".planner-", dir=parent))


@contextmanager
def _refusals(directory: Path) -> Iterator[None]:
    """What the file system refuses, in one line."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{directory}: cannot be written: {(error.strerror or str(error)).lower()}") from error


def _replaceable(directory: Path) -> Path:
    """Where an artefact goes, links followed; InputError where that would take away something that is not ours.

    An artefact that a killed run took out of this place is put back first.
    """
    place = directory.resolve()
    if place in (here := Path.cwd(), *here.parents) or os.path.ismount(place):
        raise InputError(f"{directory}: cannot be replaced as a whole; give a directory inside it with -o")
    _put_back(place)
    if not place.exists():
        return place
    if not place.is_dir():
        raise InputError(f"{directory}: is a file; give a directory with -o")
    if not any(place.iterdir()):
        return place
    if not (place / MANIFEST).is_file():
        raise InputError(f"{directory}: is not empty and holds no {MANIFEST}; give a new directory with -o")
    ours = {MANIFEST, *manifest(directory).files}
    for path in sorted(place.rglob("*")):
        name = path.relative_to(place)
        if not path.is_dir() and str(name) not in ours and LEFT_BY_PYTHON not in name.parts:
            raise InputError(
                f"{directory}: holds {name}, which is no part of the artefact; move it, or give another -o"
            )
    return place


def manifest(directory: Path) -> Manifest:
    """The manifest of an artefact directory."""
    path = directory / MANIFEST
    if not directory.is_dir():
        raise InputError(f"{directory}: is not a directory; give one that planner compile wrote")
    if not path.is_file():
        raise InputError(f"{directory}: holds no {MANIFEST}; give a directory that planner compile wrote")
    try:
        return load_file(path, Manifest)
    except InputError as error:
        raise TamperedArtifact(f"{error}; compile again into a new directory") from error


def intact(directory: Path) -> Manifest:
    """The manifest of an artefact of which every file is the one that was written."""
    found = manifest(directory)
    for name, wanted in found.files.items():
        path = directory / name
        if Path(name).is_absolute() or ".." in Path(name).parts:
            raise TamperedArtifact(f"{directory / MANIFEST}: lists {name}, which lies outside the artefact")
        if not path.is_file():
            raise TamperedArtifact(f"{path}: is missing; compile again")
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != wanted:
                raise TamperedArtifact(f"{path}: differs from the sha256 in {MANIFEST}; compile again")
    return found


def read_plan(directory: Path) -> Plan:
    """The plan of an artefact, after it was found to be the one that the manifest names."""
    found, path = manifest(directory), directory / PLAN
    if not path.is_file():
        raise TamperedArtifact(f"{path}: is missing; compile again")
    text = read_text(path)
    if sha256(text) != found.plan_sha256:
        raise TamperedArtifact(f"{path}: differs from the sha256 in {MANIFEST}; compile again")
    plan = load(text, Plan, str(path))
    made = plan.provenance
    if (found.runtime, found.planner_version) != (made.backend, made.planner_version):
        raise TamperedArtifact(f"{directory / MANIFEST}: names another runtime or planner than the plan; compile again")
    return plan
