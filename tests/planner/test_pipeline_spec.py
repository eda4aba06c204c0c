"""--passes: the text of a pipeline builds the passes whose options are their fields."""

from dataclasses import dataclass
from typing import ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InputError
from planner.pipeline import spelled
from planner.pipeline_spec import parse_passes


@dataclass(frozen=True)
class Windows:
    name: ClassVar[str] = "windows"
    tokens: tuple[int, ...] = (64,)
    keep_share: float = 0.5
    score: str = "recent"
    exact: bool = False

    def __post_init__(self) -> None:
        if self.keep_share > 1:
            raise InputError(f"keep_share is a share, found {self.keep_share}")


@dataclass(frozen=True)
class Assign:
    name: ClassVar[str] = "assign"


KNOWN: tuple[type[Windows] | type[Assign], ...] = (Windows, Assign)

WRITE = "; write name{option=value,value},name with names of windows, assign"

words = st.from_regex(r"[a-z0-9_.-]+", fullmatch=True)


@given(st.lists(st.just(Assign()) | st.builds(
    Windows, st.lists(st.integers(), min_size=1).map(tuple), st.floats(-1, 1) | st.integers(-9, 1), words, st.booleans()
), min_size=1))  # fmt: skip
def test_what_is_spelled_parses_to_the_same_passes(passes: list[Windows | Assign]) -> None:
    assert parse_passes(",".join(map(spelled, passes)), KNOWN) == tuple(passes)


@pytest.mark.parametrize(
    "spec",
    ["windows{tokens=1,2,keep-share=0.25,exact=true},assign",
     " windows { tokens=1,2 keep_share=0.25 exact=true } , assign",
     "windows{tokens=1,2;keep-share=2.5e-1;exact=true},assign"],
)  # fmt: skip
def test_separators_are_free(spec: str) -> None:
    assert parse_passes(spec, KNOWN) == (Windows((1, 2), 0.25, exact=True), Assign())


def test_an_empty_list_is_a_list() -> None:
    assert parse_passes("windows{tokens=}", KNOWN) == (Windows(()),)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("window", "unknown pass 'window'; did you mean 'windows'?"),
        ("zzz", "unknown pass 'zzz'; known: windows, assign"),
        ("", "expected a pass at the end of ''; known: windows, assign"),
        ("assign,", "expected a pass at the end of 'assign,'; known: windows, assign"),
        ("assign;windows", "cannot read 'assign;windows'" + WRITE),
        ("windows{tokens=1", "cannot read 'windows{tokens=1'" + WRITE),
        ("windows{token=1}", "windows has no option 'token'; did you mean 'tokens'?"),
        ("windows{64}", "windows: '64' belongs to no option; write option=64"),
        ("windows{tokens=1,tokens=2}", "windows: option 'tokens' is given twice"),
        ("windows{tokens=1,x}", "windows.tokens[1]: expected a whole number, found 'x'"),
        ("windows{tokens=1.5}", "windows.tokens[0]: expected a whole number, found 1.5"),
        ("windows{exact=yes}", "windows.exact: expected true or false, found 'yes'"),
        ("windows{keep-share=1,2}", "windows.keep_share: expected one value, found 2"),
        ("windows{keep-share=nan}", "windows.keep_share: expected a number, found 'nan'"),
        ("windows{keep-share=2}", "windows: keep_share is a share, found 2"),
    ],
)  # fmt: skip
def test_a_wrong_spec_ends_in_one_line(spec: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_passes(spec, KNOWN)
    assert str(caught.value) == f"--passes: {message}"
