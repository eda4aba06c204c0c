"""A front as a document, a table and a picture; currencies as they are asked for."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from planner.errors import InputError
from planner.front import Front, Kind, Point, currencies
from planner.front_plot import svg
from planner.goal import Goal, Limits, Objective
from planner.plan import Costs, Interval, SolverReport
from planner.ruler import Ruler, ruler
from planner.serde import dump_json, load

GOLDEN = Path(__file__).parent / "fronts"
THREE: tuple[Objective, ...] = ("loss_nats", "decode_s", "memory_bytes")


def costs(loss: float | None, decode_s: float, megabytes: float, source: str = "predicted") -> Costs:
    return Costs(
        source=source,
        kv_bytes=int(megabytes * 2e5),
        weight_bytes=int(megabytes * 8e5),
        memory_bytes=int(megabytes * 1e6),
        loss_nats=None if loss is None else Interval(loss, loss * 0.6, loss * 1.6),
        decode_s=Interval(decode_s, decode_s * 0.8, decode_s * 1.2),
        ttft_s=Interval(1.0, 0.8, 1.2),
    )


def point(name: str, loss: float | None, decode_s: float, megabytes: float, kind: Kind = "planned") -> Point:
    solver = SolverReport("within gap", 5e-4, 0.1, 0.1, (("memory_bytes", -1e-9),))
    return Point(name, kind, Goal("loss_nats", Limits(decode_s=0.02)), costs(loss, decode_s, megabytes), None, solver)


@pytest.fixture
def made() -> Front:
    points = [point(f"{i + 1:02}", 0.001 * 4**i, 0.03 / (i + 1), 400.0 / 1.6**i) for i in range(6)]
    for place in (1, 3):
        own = points[place]
        loss = own.value("loss_nats")
        ran = replace(costs(loss * 1.2, own.value("decode_s") * 1.1, 100.0, "measured on this machine"))
        points[place] = replace(own, measured=ran)
    beside = (point("uniform", 0.02, 0.02, 300.0, "uniform"), point("dense", 0.0, 0.06, 900.0, "dense"))
    return Front("made up", "toy", "none", THREE, Limits(ttft_s=4.0), tuple(points), beside, 1234, 9, True, ("a note",))


def test_a_front_is_the_same_once_written_and_read(made: Front) -> None:
    assert load(dump_json(made), Front, "front.json") == made
    assert load(json.dumps(made.as_json()), Front, "front.json") == made


def test_a_table_has_a_line_for_every_point_and_one_for_what_was_measured(made: Front) -> None:
    lines = made.as_text().splitlines()
    assert lines[0] == (
        "made up: 6 points on the front over loss_nats, decode_s, memory_bytes; 9 solves of 1,234 candidates,"
        " on toy by none"
    )
    assert [line.split()[0] for line in lines[3:13]] == [
        *("01", "02", "measured", "03", "04", "measured", "05", "06", "uniform", "dense")
    ]
    assert lines[2].split("  ")[-1] == "weights, MB"
    assert "0.0048 [0.00288, 0.00768]" in lines[5] and "- measured on this machine" in lines
    assert lines[-1] == "note: a note"


def test_memory_is_not_measured_nor_are_seconds_of_another_machine(made: Front) -> None:
    own = made.verified[0]
    assert made.measured(own, "memory_bytes") is None
    assert made.measured(own, "decode_s") is not None
    assert replace(made, local=False).measured(own, "decode_s") is None
    assert replace(made, local=False).measured(own, "loss_nats") is not None
    assert made.measured(made.points[0], "loss_nats") is None


def drawings(made: Front) -> Iterator[tuple[str, Front]]:
    yield "three", made
    two: tuple[Objective, ...] = ("decode_s", "memory_bytes")
    bare = tuple(point(p.name, None, p.value("decode_s"), p.value("memory_bytes") / 1e6) for p in made.points)
    yield "two", replace(made, over=two, points=bare, local=False)


def test_pictures_are_as_they_were(made: Front) -> None:
    """To renew them, write what `svg` gives over the files of `fronts/` and look at them in a browser."""
    for name, front in drawings(made):
        assert svg(front) == (GOLDEN / f"{name}.svg").read_text(encoding="utf-8")


def test_a_picture_stands_alone_with_axes_marks_and_titles(made: Front) -> None:
    for _, front in drawings(replace(made, name="<made> & up")):
        picture = svg(front)
        root = ElementTree.fromstring(picture)
        assert not re.search(r"href|<script|<style|url\(", picture)
        assert float(root.attrib["width"]) > 0
        told = [each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}text")]
        assert "memory, MB" in told and "decoding, ms per token" in told and "<made> & up on toy by none" in told
        titles = [each.text or "" for each in root.iter("{http://www.w3.org/2000/svg}title")]
        for own in (*front.points, *front.beside):
            assert any(title.startswith(f"{own.name}: ") for title in titles)
        assert any(title.startswith("measured: ") for title in titles) == bool(front.verified)
        for numbers in re.findall(r'(?:cx|cy|x1|y1|x2|y2)="([^"]+)"', picture):
            assert 0 <= float(numbers) <= 1400


def test_a_front_of_one_point_has_a_picture(made: Front) -> None:
    alone = replace(made, points=made.points[:1], beside=(replace(made.points[0], kind="dense"),))
    ElementTree.fromstring(svg(alone))


@pytest.mark.parametrize("values", [[3.0, 3.0], [0.001, 500.0], [0.5, 0.6], [99_999.0, 100_000.0], [1e-9, 1e-8]])
def test_a_ruler_has_its_values_and_ticks_on_it(values: list[float]) -> None:
    for axis in (ruler(values), ruler(values, 1e-3)):
        ticks = axis.ticks()
        assert 2 <= len(ticks) <= 9
        assert all(-1e-9 <= axis.at(value) <= 1 + 1e-9 for value in (*values, *ticks))
        assert list(ticks) == sorted(set(ticks))
    assert Ruler("from zero", 0.0, 2.0, 0.5).at(0.0) == 0.0


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("loss_nats,decode", "unknown currency 'decode'; did you mean 'decode_s'?"),
        ("loss_nats", "found 1 of them; a front is over two or three of loss_nats"),
        ("", "unknown currency ''"),
        ("loss_nats,loss_nats", "name each currency once"),
        ("loss_nats,decode_s,ttft_s,memory_bytes", "found 4 of them"),
        ("loss_nats,kv_share", "unknown currency 'kv_share'"),
    ],
)
def test_currencies_that_will_not_do(asked: str, message: str) -> None:
    with pytest.raises(InputError, match="--over") as error:
        currencies(asked)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_currencies_come_in_the_order_in_which_they_are_minimised() -> None:
    assert currencies("kv_bytes, ttft_s") == ("ttft_s", "kv_bytes")
