"""Artefacts in a report are told apart, whatever their directories are called."""

from pathlib import Path

import pytest

from planner.compile.bench import names
from planner.errors import InputError


def test_directories_of_one_name_are_told_by_their_paths() -> None:
    assert names((Path("a/out"), Path("b/out"))) == {"a/out": Path("a/out"), "b/out": Path("b/out")}


def test_a_directory_is_not_mistaken_for_what_is_raced_beside() -> None:
    assert list(names((Path("x/dense"), Path("y")))) == ["x/dense", "y"]


@pytest.mark.parametrize("again", ["a/out", "a/../a/out", "./a/out"])
def test_an_artefact_is_named_once(again: str) -> None:
    with pytest.raises(InputError, match="is there already; name each artefact once"):
        names((Path("a/out"), Path(again)))
