"""An artefact directory: written whole beside its place and renamed into it, every file in a manifest with its sha256."""

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from planner.errors import InputError
from planner.executor import Artifact

MANIFEST = "manifest.json"
PLAN = "plan.yaml"
REPORT = "report.json"


@dataclass(frozen=True, slots=True)
class Header:
    """What the manifest says besides its files."""

    runtime: str
    runtime_version: str
    plan_sha256: str
    planner_version: str


def write(directory: Path, files: Iterable[Artifact], header: Header) -> None:
    """Write an artefact. A killed run leaves the old directory or the new one; a foreign directory is never replaced."""
    if directory.exists() and any(directory.iterdir()) and not (directory / MANIFEST).is_file():
        raise InputError(f"{directory}: is not empty and holds no {MANIFEST}; give a new directory with -o")
    new = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            new.mkdir(parents=True)
            digests: dict[str, str] = {}
            for file in files:
                content = file.content if isinstance(file.content, bytes) else file.content.read_bytes()
                path = new / file.path
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
                digests[file.path] = hashlib.sha256(content).hexdigest()
            manifest = {
                "schema": "planner/manifest@1",
                "runtime": header.runtime,
                "runtime_version": header.runtime_version,
                "planner_version": header.planner_version,
                "plan_sha256": header.plan_sha256,
                "files": dict(sorted(digests.items())),
            }
            (new / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
            _swap(new, directory)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{directory}: cannot be written: {(error.strerror or str(error)).lower()}") from error


def _swap(new: Path, directory: Path) -> None:
    """Put `new` where `directory` is."""
    if not directory.exists():
        os.replace(new, directory)
        return
    old = directory.with_name(f".{directory.name}.{secrets.token_hex(4)}.old")
    os.replace(directory, old)
    os.replace(new, directory)
    shutil.rmtree(old)


def writable(directory: Path) -> None:
    """InputError now rather than after minutes of measuring, where an artefact could not be written."""
    parent = directory.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"{directory}: cannot be written: {parent} is not a writable directory")
    if directory.exists() and any(directory.iterdir()) and not (directory / MANIFEST).is_file():
        raise InputError(f"{directory}: is not empty and holds no {MANIFEST}; give a new directory with -o")
