"""Compiled kernels kept on disk by the hash of all that decides them: source, types, constants, compiler, chip."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backends.triton.chips import Chip
from backends.triton.report import Dropped, Resources
from planner.errors import InputError
from planner.files import read_text, write_bytes, write_text
from planner.serde import build, dump_json

if TYPE_CHECKING:
    from backends.kernels.contract import Launch, Variant
    from backends.triton.binary import Binary

LAYOUT = 2
"""Counted up when what is kept changes, or the rules by which a kernel is dropped."""


@dataclass(frozen=True, slots=True)
class CompiledKernel:
    """What is kept of one compilation: the binary's entry, resources and sha256, or why it was dropped."""

    entry: str
    resources: Resources | None
    code_sha256: str
    dropped: Dropped | None


def key(source_sha256: str, launch: "Launch", variant: "Variant", chip: Chip, triton_version: str) -> str:
    """The identity of a compilation; constants are spelled, so types and numbers do."""
    parts = [
        LAYOUT,
        source_sha256,
        getattr(launch.kernel, "__name__", ""),
        launch.signature,
        {name: repr(value) for name, value in launch.constexprs.items()},
        sorted(launch.divisible),
        variant.num_warps,
        variant.num_stages,
        chip.name,
        triton_version,
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Store:
    """A directory of compiled kernels: for each key a record, and where it was kept its binary and assembly.

    Every file is written whole, the record last, so a killed run leaves no record without its binary.
    """

    directory: Path

    def record(self, key: str) -> CompiledKernel | None:
        """What was kept of a compilation; None where it was not done, or what was kept is not whole any more."""
        path = self._path(key, "json")
        if not path.is_file():
            return None
        try:
            kept = build(json.loads(read_text(path)), CompiledKernel, str(path))
        except (InputError, ValueError):
            return None
        return kept if kept.dropped is not None or self._code(key) == kept.code_sha256 else None

    def _code(self, key: str) -> str:
        """Sha256 of a binary; empty where it or its assembly is gone."""
        path = self._path(key, "bin")
        if not path.is_file() or not self._path(key, "asm").is_file():
            return ""
        return hashlib.sha256(path.read_bytes()).hexdigest()

    def keep(self, key: str, result: "Binary | Dropped") -> CompiledKernel:
        """Write what a compilation gave."""
        self._path(key, "json").parent.mkdir(parents=True, exist_ok=True)
        if isinstance(result, Dropped):
            kept = CompiledKernel("", None, "", result)
        else:
            write_bytes(result.code, self._path(key, "bin"))
            write_text(result.assembly, self._path(key, "asm"))
            kept = CompiledKernel(result.entry, result.resources, hashlib.sha256(result.code).hexdigest(), None)
        write_text(dump_json(kept), self._path(key, "json"))
        return kept

    def binary(self, key: str) -> tuple[bytes, bytes] | None:
        """(binary, assembly) of a kernel that was kept; None where it was dropped or is not whole any more."""
        record = self.record(key)
        if record is None or record.dropped is not None:
            return None
        return self._path(key, "bin").read_bytes(), self._path(key, "asm").read_bytes()

    def _path(self, key: str, ending: str) -> Path:
        return self.directory / key[:2] / f"{key}.{ending}"
