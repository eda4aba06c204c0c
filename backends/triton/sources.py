"""Kernel modules by folder and name: their source, and the modules themselves where they are run."""

import ast
import hashlib
import importlib
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType

KERNELS = Path(__file__).resolve().parents[1] / "kernels"
"""The kernels that are copied beside plans."""

PACKAGE = "planned_kernels"


def closure(folder: Path, name: str) -> tuple[str, ...]:
    """A module's name and those of all it imports from its folder, sorted.

    >>> closure(KERNELS, "contract")
    ('contract',)
    """
    found: set[str] = set()
    left = [name]
    while left:
        module = left.pop()
        if module in found:
            continue
        found.add(module)
        tree = ast.parse((folder / f"{module}.py").read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.level == 1:
                left += [alias.name for alias in node.names] if node.module is None else [node.module]
    return tuple(sorted(found))


@lru_cache
def source_sha256(folder: Path, name: str) -> str:
    """Sha256 of a module and of all it imports from its folder."""
    digest = hashlib.sha256()
    for module in closure(folder, name):
        digest.update(f"{module}\0".encode() + (folder / f"{module}.py").read_bytes() + b"\0")
    return digest.hexdigest()


def module(folder: Path, name: str) -> ModuleType:
    """The module, imported as part of a package that is the folder; a process imports from one folder."""
    if PACKAGE not in sys.modules:
        package = ModuleType(PACKAGE)
        package.__path__ = [str(folder)]
        sys.modules[PACKAGE] = package
    return importlib.import_module(f"{PACKAGE}.{name}")
