"""Who may import whom. Every import counts, those inside functions too, unless a test says otherwise."""

import ast
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SIBLINGS = ("passes", "backends", "profiles")
DRIVER = ("planner.compile", "planner.api", "planner.cli", "planner.__main__")
RUNNERS = tuple(sorted((ROOT / "backends").glob("*/runner.py")))
KERNELS = tuple(sorted((ROOT / "backends" / "kernels").glob("*.py")))
IN_KERNELS = {"numpy", "torch", "triton", *sys.stdlib_module_names}
IN_ARTEFACTS = {
    "torch",
    "numpy",
    "onnxruntime",
    "transformers",
    "tokenizers",
    "safetensors",
    "xllamacpp",
    *sys.stdlib_module_names,
}
IN_HELP = {"click", *sys.stdlib_module_names}


def modules(package: str) -> Iterator[tuple[str, Path]]:
    for path in sorted((ROOT / package).rglob("*.py")):
        if path in KERNELS:
            continue
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def imports(nodes: Iterable[ast.AST]) -> Iterator[str]:
    """Dotted names of what is imported; of `from a import b`, both a and a.b, for b may be a module."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports name their package in full"
            yield str(node.module)
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imported(path: Path) -> set[str]:
    return set(imports(ast.walk(ast.parse(path.read_text(encoding="utf-8")))))


def within(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def test_only_the_driver_and_the_command_line_know_the_siblings() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, path in modules("planner")
        if not within(name, DRIVER)
        for other in imported(path)
        if within(other, (*SIBLINGS, *DRIVER))
    ]
    assert not wrong


@pytest.mark.parametrize("package", SIBLINGS)
def test_siblings_know_neither_each_other_nor_the_driver(package: str) -> None:
    others = [other for other in SIBLINGS if other != package]
    wrong = [
        f"{name} imports {other}"
        for name, path in modules(package)
        for other in imported(path)
        if within(other, (*others, *DRIVER, "tests"))
    ]
    assert not wrong


@pytest.mark.parametrize("package", ["planner", "passes"])
def test_what_decides_runs_without_a_tensor_library(package: str) -> None:
    heavy = ("torch", "transformers", "triton", "gguf", "safetensors", "tokenizers")
    wrong = [f"{name} imports {o}" for name, path in modules(package) for o in imported(path) if within(o, heavy)]
    assert not wrong


def test_only_the_solver_knows_its_library() -> None:
    every = [pair for package in ("planner", *SIBLINGS) for pair in modules(package)]
    wrong = [name for name, path in every if any(within(o, ("ortools",)) for o in imported(path))]
    assert all(name.startswith("planner.solver") for name in wrong), wrong


def test_commands_import_at_the_top_only_what_help_needs() -> None:
    wrong = [
        f"{name} imports {other}"
        for name, path in modules("planner/cli")
        for other in imports(ast.parse(path.read_text(encoding="utf-8")).body)
        if other.partition(".")[0] not in IN_HELP and not within(other, ("planner.cli", "planner.errors"))
    ]
    assert not wrong


@pytest.mark.parametrize("path", RUNNERS, ids=lambda path: path.parent.name)
def test_what_is_copied_into_artefacts_stands_alone(path: Path) -> None:
    assert {name.partition(".")[0] for name in imported(path)} <= IN_ARTEFACTS


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_kernels_know_only_one_another(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.level:
            beside = [alias.name for alias in node.names] if node.module is None else [node.module]
            assert node.level == 1 and all((path.parent / f"{name}.py").exists() for name in beside), beside
        elif isinstance(node, ast.Import | ast.ImportFrom):
            assert {name.partition(".")[0] for name in imports([node])} <= IN_KERNELS


def test_a_package_is_only_its_docstring() -> None:
    for package in ("planner", *SIBLINGS):
        for path in (ROOT / package).glob("__init__.py"):
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert all(isinstance(node, ast.Expr) for node in body), f"{path} does more than say what it is"
