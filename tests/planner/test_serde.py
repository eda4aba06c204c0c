"""Documents: what is dumped loads as itself; what is not a document ends in one line that says where and why."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InputError
from planner.files import LARGEST_BYTES, read_text, write_text
from planner.goal import Goal, Limits, Workload
from planner.hardware import HardwareProfile
from planner.plan import Costs, Interval, Plan, Provenance, SolverReport
from planner.profile import ModelProfile
from planner.serde import dump, dump_file, dump_json, load, load_file
from planner.space import (
    AtMostDistinct,
    Choice,
    Constraint,
    Full,
    KvChoice,
    KvFormat,
    KvSite,
    Requires,
    Same,
    Site,
    Space,
    WeightChoice,
    WeightFormat,
    WeightSite,
    Window,
)
from planner.yaml_text import parse, quoted, write

PLANS = Path(__file__).parent / "plans"

numbers = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(2**60), 2**60)
positive = st.floats(min_value=1e-300, max_value=1e300)
# Lone surrogates are no text: nothing that came from a UTF-8 file holds one.
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=20)
counts = st.integers(0, 10**12)

tiers = st.lists(st.tuples(texts, numbers), max_size=2).map(tuple)
spans = st.just(Full()) | st.builds(Window, counts, numbers)
kv_formats = st.builds(KvFormat, numbers, texts)
kv_choices = st.builds(KvChoice, spans, kv_formats, kv_formats, counts, tiers)
weight_formats = st.builds(WeightFormat, numbers, st.sampled_from(("float", "native", "grouped")), counts)
weight_choices = st.builds(WeightChoice, weight_formats, tiers)
kv_sites = st.builds(KvSite, counts, counts)
weight_sites = st.builds(WeightSite, counts, texts)
intervals = st.none() | st.builds(Interval, numbers, numbers, numbers)
costs = st.none() | st.builds(
    Costs, texts, counts, counts, counts, intervals, intervals, intervals, intervals, st.none() | numbers
)
workloads = st.builds(Workload, st.just((2048, 512)), st.just(()) | st.tuples(positive, positive), st.integers(1, 511))
limits = st.builds(
    Limits, st.none() | positive, st.none() | st.integers(1), st.none() | st.integers(1), decode_s=st.none() | positive
)
goals = st.builds(Goal, st.sampled_from(("loss_nats", "decode_s")), limits)
reports = st.none() | st.builds(
    SolverReport, texts, numbers, numbers, numbers, st.lists(st.tuples(texts, numbers), max_size=3).map(tuple)
)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    kv = draw(st.dictionaries(kv_sites, kv_choices, max_size=4))
    weights = draw(st.dictionaries(weight_sites, weight_choices, max_size=3))
    sites: list[Site] = [*kv, *weights]
    constraints: tuple[Constraint, ...] = (AtMostDistinct(tuple(sites), "kernel", 7), Same(tuple(sites[:1]), "tier"))
    if sites:
        chosen: dict[Site, Choice] = {**kv, **weights}
        both = frozenset({chosen[sites[0]], chosen[sites[-1]]})
        constraints += (Requires(sites[0], both, sites[-1], both),)
    provenance = st.builds(Provenance, texts, texts, texts, texts, texts, st.tuples(texts, texts), st.integers(), texts)
    return Plan(
        name=draw(texts),
        workload=draw(workloads),
        goal=draw(goals),
        provenance=draw(provenance),
        kv=tuple(kv.items()),
        weights=tuple(weights.items()),
        constraints=constraints,
        solver=draw(reports),
        predicted=draw(costs),
        measured=draw(costs),
        quality_verified=draw(st.booleans()),
    )


@given(plans())
@settings(max_examples=60, deadline=None)
def test_a_plan_loads_as_what_was_dumped(plan: Plan) -> None:
    text = dump(plan)
    loaded = load(text, Plan, "plan.yaml")
    assert loaded == plan
    assert dump(loaded) == text
    assert load(dump_json(plan), Plan, "plan.json") == plan


@given(kv_choices | goals | workloads | weight_choices | intervals.filter(bool))
@settings(max_examples=100, deadline=None)
def test_every_noun_loads_as_what_was_dumped(value: object) -> None:
    loaded = load(dump(value), type(value), "x.yaml")
    assert loaded == value
    assert repr(loaded) == repr(value)


@given(st.dictionaries(kv_sites, st.lists(kv_choices, min_size=1, max_size=3).map(tuple), max_size=3))
@settings(max_examples=30, deadline=None)
def test_a_space_loads_with_its_candidates_in_order(candidates: dict[Site, tuple[Choice, ...]]) -> None:
    space = Space(candidates, (Same(tuple(candidates), "span"),))
    loaded = load(dump(space), Space, "space.yaml")
    assert loaded == space
    assert list(loaded.candidates.items()) == list(candidates.items())


@given(st.recursive(st.none() | st.booleans() | numbers | texts, lambda x: st.lists(x, max_size=4)
                    | st.dictionaries(texts, x, max_size=4), max_leaves=12))  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_plain_values_read_back_by_us_and_by_other_yaml_readers(value: object) -> None:
    text = write({"x": value})  # type: ignore[dict-item]  # the strategy yields plain values only
    assert parse(text, "x.yaml") == {"x": value}
    assert yaml.safe_load(text) == {"x": value}


@given(texts)
def test_an_unquoted_word_is_a_string_to_every_reader(text: str) -> None:
    assert yaml.safe_load(quoted(text)) == text


def test_the_first_published_plan_still_loads() -> None:
    plan = load_file(PLANS / "v1.yaml", Plan)
    assert dump(plan) == (PLANS / "v1.yaml").read_text(encoding="utf-8")
    assert plan.kv[1] == (
        KvSite(0, 1),
        KvChoice(Window(64, 0.03125), KvFormat(4, "rotated"), KvFormat(3, "rotated"), 4, (("dram", 1.0),)),
    )
    assert plan.weights[0][1].format == WeightFormat(4, "native", 32)
    assert plan.predicted is not None and plan.predicted.loss_nats == Interval(0.0212, 0.015, 0.031)


def test_a_plan_of_thousands_of_sites_names_each_choice_once() -> None:
    choices = [KvChoice(Window(alpha), KvFormat(4), KvFormat(4), 4, (("dram", 1.0),)) for alpha in (32, 64, 96)]
    first = load_file(PLANS / "v1.yaml", Plan)
    kv = tuple((KvSite(i // 8, i % 8), choices[i % 3]) for i in range(4000))
    plan = Plan(first.name, first.workload, first.goal, first.provenance, kv, (), (), None, None)
    text = dump(plan)
    assert text.count("alpha") == 3
    assert load(text, Plan, "plan.yaml") == plan


SMALL = "schema: planner/goal@1\n"
ALIASES = "line 2: anchors and aliases (& and *) are not taken; write the value out"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SMALL + "minimize: loss_nats", "$.minimize: unknown field; did you mean 'minimise'?"),
        (SMALL + "limits: {kv_bytes: many}", "$.limits.kv_bytes: expected a whole number, found 'many'"),
        (SMALL + "limits: {kv_bytes: 1.5}", "$.limits.kv_bytes: expected a whole number, found 1.5"),
        (SMALL + "limits: {kv_bytes: true}", "$.limits.kv_bytes: expected a whole number, found true"),
        (SMALL + "limits: {decode_s: .nan}", "$.limits.decode_s: expected a number, found nan"),
        (SMALL + "limits: {decode_s: 1e999}", "$.limits.decode_s: expected a number, found inf"),
        (SMALL + "limits: {decode_s: true}", "$.limits.decode_s: expected a number, found true"),
        (SMALL + "limits: [1]", "$.limits: expected a mapping, found a list"),
        (SMALL + "limits: {kv_share: -1}", "goal.limits.kv_share: found -1; must be positive"),
        (
            SMALL + "minimise: los_nats",
            "$.minimise: expected one of loss_nats, memory_bytes, kv_bytes, weight_bytes, decode_s, ttft_s, "
            "found 'los_nats'; did you mean 'loss_nats'?",
        ),
        ("minimise: loss_nats", "$.schema: expected planner/goal@1, found nothing"),
        ("schema: planner/goal@2", "$.schema: expected planner/goal@1, found 'planner/goal@2'"),
        ("", "expected a document that begins 'schema: planner/goal@1', found nothing"),
        ("[1]", "expected a document that begins 'schema: planner/goal@1', found a list"),
        (SMALL + "limits: {}\nlimits: {}", "line 3: field 'limits' is given twice"),
        (SMALL + "limits: {a: 1, a: 2}", "line 2: field 'a' is given twice"),
        (SMALL + "limits: !!python/object/apply:os.system ['true']",
         "line 2: tags are not taken; found tag:yaml.org,2002:python/object/apply:os.system"),
        (SMALL + "minimise: !!str loss_nats", "line 2: tags are not taken; found tag:yaml.org,2002:str"),
        (SMALL + "a: &a [x, x]\nb: &b [*a, *a]", ALIASES),
        (SMALL + "limits: *x", ALIASES),
        (SMALL + "? [1]\n: 2", "line 2: a field's name must be a string"),
        (SMALL + "limits: " + "[" * 5000, "line 2: nested deeper than 64 levels"),
        (SMALL + "limits: {", "line 3: not YAML: did not find expected node content"),
        (SMALL + "---\n" + SMALL, "line 2: a second document begins; a file holds one"),
    ],
)  # fmt: skip
def test_bad_documents_end_in_one_line(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        load(text, Goal, "goal.yaml")
    assert str(caught.value) == f"goal.yaml: {message}"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("sinks: 4", "sink: 4", "$.kv.values[0].sink: unknown field; did you mean 'sinks'?"),
        ("sinks: 4", "sinks: four", "$.kv.values[0].sinks: expected a whole number, found 'four'"),
        ("sinks: 4, ", "", "$.kv.values[0]: field 'sinks' is missing"),
        ("kind: full", "kind: ful", "$.kv.values[0].span.kind: unknown kind 'ful'; did you mean 'full'?"),
        ("{kind: full}", "{}", "$.kv.values[0].span: field 'kind' is missing; one of full, window"),
        ("kind: full", "kind: [full]", "$.kv.values[0].span.kind: unknown kind a list"),
        ("kind: full", "kind: os.system", "$.kv.values[0].span.kind: unknown kind 'os.system'; known: full, window"),
        ("kv_head: 1, value: 1", "kv_head: 1, value: 9",
         "$.kv.at[1].value: expected the number of one of 2 values, found 9"),
        ("kv_head: 1, value: 1", "kv_head: 1, value: -1",
         "$.kv.at[1].value: expected the number of one of 2 values, found -1"),
        ("[[dram, 1.0]]", "[[dram]]", "$.kv.values[0].tier[0]: expected a list of 2, found a list of 1"),
        ("[[dram, 1.0]]", "[[1, 1.0]]", "$.kv.values[0].tier[0][0]: expected a string, found 1"),
        ("most: 2", "most: 1", "plan smollm2: breaks AtMostDistinct"),
    ],
)  # fmt: skip
def test_what_is_wrong_deep_in_a_plan_is_named_by_its_path(old: str, new: str, message: str) -> None:
    text = (PLANS / "v1.yaml").read_text(encoding="utf-8")
    assert old in text
    with pytest.raises(InputError) as caught:
        load(text.replace(old, new, 1), Plan, "plan.yaml")
    assert str(caught.value).startswith(f"plan.yaml: {message}")


def test_a_plan_of_another_kind_of_document_is_refused() -> None:
    text = (PLANS / "v1.yaml").read_text(encoding="utf-8")
    for kind in (HardwareProfile, ModelProfile):
        with pytest.raises(InputError, match="found 'planner/plan@1'"):
            load(text, kind, "plan.yaml")


@pytest.mark.parametrize("value", [Interval(float("nan"), 0, 1), Interval(True, 0, 1), Interval(0, 0, float("inf"))])
def test_what_no_document_can_hold_is_not_written(value: Interval) -> None:
    with pytest.raises(TypeError, match=r"planner/interval@1: \$\.(value|high): expected a number"):
        dump(value)


@dataclass(frozen=True, slots=True)
class Case:
    """The hints no noun has yet."""

    where: Path
    by_name: Mapping[str, tuple[int, ...]]
    width: Literal[16, 32] = 16


def test_paths_named_mappings_and_numeric_literals(tmp_path: Path) -> None:
    case = Case(Path("a/b"), {"x": (1,), "1": ()}, 32)
    dump_file(case, tmp_path / "x.yaml")
    assert load_file(tmp_path / "x.yaml", Case) == case
    with pytest.raises(InputError, match=r"\$\.width: expected one of 16, 32, found 16\.0"):
        load("schema: planner/case@1\nwhere: a\nby_name: {}\nwidth: 16.0", Case, "x")


def test_unreadable_files_end_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9")
    (tmp_path / "zero.yaml").write_bytes(b"a: \x00")
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(LARGEST_BYTES + 1)
    for path, message in (
        ("latin.yaml", "is not UTF-8 text: byte 9 is 0xe9"),
        ("none.yaml", "cannot be read: no such file or directory"),
        (".", "cannot be read: is a directory"),
        ("huge.yaml", "is larger than 256 MiB, the most a document may be"),
        ("zero.yaml", "not YAML: unacceptable character #x0000: control characters are not allowed"),
    ):  # fmt: skip
        with pytest.raises(InputError) as caught:
            load_file(tmp_path / path, Goal)
        assert str(caught.value).startswith(f"{tmp_path / path}: {message}")
        assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "bom.yaml").write_bytes("\ufeff".encode() + dump(Goal()).encode())
    assert load_file(tmp_path / "bom.yaml", Goal) == Goal()


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "goal.yaml"
    dump_file(Goal(), path)
    with pytest.raises(InputError, match="half of a surrogate pair"):
        dump_file(WeightSite(0, "\ud800"), path)
    with pytest.raises(UnicodeEncodeError):
        write_text("\ud800", path)
    assert read_text(path) == dump(Goal())
    assert [p.name for p in tmp_path.iterdir()] == ["goal.yaml"]


def test_a_directory_that_is_not_there_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be written: no such file or directory"):
        dump_file(Goal(), tmp_path / "none" / "goal.yaml")


def test_json_is_json(tmp_path: Path) -> None:
    assert json.loads(dump_json(Goal()))["schema"] == "planner/goal@1"
