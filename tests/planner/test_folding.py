"""Folding keeps what every query head asks for, and no more where their rules agree."""

from collections.abc import Callable, Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.folding import covering, merged, window_over
from planner.published import EVERY_TOKEN, Published, Rule, folded, stored_density
from planner.space import FLOAT16, Full, KvChoice, Span, Window
from planner.spec import LayerSpec, ModelSpec

HOME = (("dram", 1.0),)
SINKS = 4
GROUPS = ((1, 4), (2, 2), (4, 1))


def for_any_seed(law: Callable[..., None]) -> Callable[..., None]:
    return settings(max_examples=60, deadline=None)(given(seed=st.integers(0, 10**6))(law))


def some_contexts(rng: Random) -> tuple[int, ...]:
    return tuple(sorted({rng.randint(32, 20_000) for _ in range(rng.randint(1, 4))}))


def some_rule(rng: Random) -> Rule:
    lines = tuple((float(rng.randint(-4096, 8192)), rng.randint(0, 8) / 8) for _ in range(rng.randint(1, 3)))
    return Rule((*lines, (128.0, 0.0)), 64)


def some_span(rng: Random) -> Span:
    return Full() if rng.random() < 0.2 else Window(rng.randint(1, 4096), rng.choice((0.0, 0.125, 0.3, 0.5)))


def some_plan(rng: Random) -> list[list[Rule]]:
    return [[some_rule(rng) for _ in range(4)] for _ in range(rng.randint(1, 3))]


def model(layers: int, kv_heads: int, group: int, window: int | None = None) -> ModelSpec:
    each = LayerSpec(kv_heads * group, kv_heads, 64, window)
    return ModelSpec("toy", "toy", "", 64, 10, 2**20, (each,) * layers, (), 0)


def costs(published: Published, spec: ModelSpec, contexts: Sequence[int], at: int) -> float:
    """The density a folded plan stores at a length."""
    dense = KvChoice(Full(), FLOAT16, FLOAT16, 0, HOME)
    chosen = {
        site: published.choice(rules, spec.layers[site.layer], contexts, dense)
        for site, rules in published.groups(spec)
    }
    return stored_density(chosen, spec, at)


def plan(rules: Sequence[Sequence[Rule]]) -> Published:
    return Published("moa", "a.json", "", "query heads", tuple(map(tuple, rules)), SINKS)


@for_any_seed
def test_a_folded_rule_keeps_what_the_largest_does_at_every_length(seed: int) -> None:
    rng = Random(seed)
    rules = [some_rule(rng) for _ in range(rng.randint(1, 8))]
    for context in (1, 100, *some_contexts(rng)):
        assert folded(rules).tokens(context) == max(rule.tokens(context) for rule in rules)
        assert folded([rules[0]] * 4).tokens(context) == rules[0].tokens(context)


@for_any_seed
@pytest.mark.parametrize("shape", GROUPS)
def test_a_folded_plan_costs_at_least_its_published_density(shape: tuple[int, int], seed: int) -> None:
    rng = Random(seed)
    rules, contexts = some_plan(rng), some_contexts(rng)
    spec, found = model(len(rules), *shape, rng.choice((None, 500))), plan(rules)
    for context in contexts:
        assert costs(found, spec, contexts, context) >= found.density(spec, context) - 1e-12


@for_any_seed
def test_where_heads_share_nothing_and_where_groups_agree_the_densities_are_equal(seed: int) -> None:
    rng = Random(seed)
    rules, context = some_plan(rng), rng.randint(32, 20_000)
    alone, doubled = plan(rules), plan([[rule for rule in row for _ in range(2)] for row in rules])
    density = alone.density(model(len(rules), 4, 1), context)
    assert costs(alone, model(len(rules), 4, 1), (context,), context) == pytest.approx(density)
    assert costs(doubled, model(len(rules), 4, 2), (context,), context) == pytest.approx(density)
    assert alone.mixed(model(len(rules), 4, 1), context) == doubled.mixed(model(len(rules), 4, 2), context) == 0


def test_a_group_is_of_neighbouring_query_heads() -> None:
    large, small = Rule(((512.0, 0.0),)), Rule(((64.0, 0.0),))
    neighbours, strided = plan([[large, large, small, small]]), plan([[large, small, large, small]])
    spec = model(1, 2, 2)
    assert (neighbours.mixed(spec, 1024), strided.mixed(spec, 1024)) == (0, 2)
    assert costs(neighbours, spec, (1024,), 1024) == neighbours.density(spec, 1024) == 0.28125
    assert (strided.density(spec, 1024), costs(strided, spec, (1024,), 1024)) == (0.28125, 0.5)


@for_any_seed
def test_a_window_meets_every_need_and_none_is_met_by_one_token_less(seed: int) -> None:
    rng = Random(seed)
    needs = {context: rng.randint(1, 20_000) for context in some_contexts(rng)}
    window = window_over(needs, (rng.randint(0, 8) / 8,))
    assert all(round(window.alpha + window.beta * n) >= tokens for n, tokens in needs.items())
    assert any(round(window.alpha - 1 + window.beta * n) < tokens for n, tokens in needs.items())


def test_one_rule_that_is_the_largest_everywhere_stays_as_it_is() -> None:
    group = (Rule(((0.0, 0.5),)), Rule(((0.0, 0.125),)))
    assert folded(group).span(64, (2048, 4096, 16384)) == Window(-64, 0.5)
    assert EVERY_TOKEN.span(64, (2048,)) == Full()


@for_any_seed
def test_merged_spans_are_few_and_keep_no_less(seed: int) -> None:
    rng = Random(seed)
    spans, most = [some_span(rng) for _ in range(rng.randint(1, 7))], rng.randint(1, 3)
    contexts = some_contexts(rng)
    found = merged(spans, most, contexts)
    assert len(set(found)) <= most and len(found) == len(spans)
    if len(set(spans)) <= most:
        assert found == tuple(spans)
    for before, after in zip(spans, found, strict=True):
        if isinstance(before, Full) or isinstance(after, Full):
            assert isinstance(after, Full)
        else:
            assert all(after.tokens(context) >= before.tokens(context) for context in contexts)


def test_covering_is_of_the_same_size_as_the_largest_at_one_length() -> None:
    spans = (Window(64), Window(0, 0.25), Window(100, 0.125))
    assert covering(spans, (1000,)) == Window(0, 0.25)
