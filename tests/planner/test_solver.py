"""The solver agrees with brute force, keeps its laws, and explains itself."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from planner.errors import Infeasible, InputError
from planner.solver import InfeasibleProblem, Solution, explain, solve
from planner.solver_branch import build
from planner.solver_combine import combine
from planner.solver_divide import divide
from planner.solver_dual import bound
from planner.solver_exact import prove
from planner.solver_problem import AtMost, Implies, Problem, keeps_relations
from planner.solver_reduce import reduce
from planner.solver_search import improve


def tiny(seed: int, integral: bool = False) -> Problem:
    """A problem that can be enumerated: 2-5 sites, 2-4 candidates, all kinds of relations, one or two objectives."""
    rng = np.random.default_rng(seed)
    groups = tuple(int(n) for n in rng.integers(2, 5, rng.integers(2, 6)))
    rows = 4
    usage = rng.integers(0, 7, (sum(groups), rows)).astype(float)
    if not integral:
        usage = usage * 0.1 + np.where(rng.random(usage.shape) < 0.5, rng.random(usage.shape), 0.0)
    usage *= np.array([1e-6, 1e10, 1e-3, 1.0]) if not integral else 1.0
    constant = np.array([0.0, 2.0, 1.0, 0.0]) * (1.0 if integral else np.array([1e-6, 1e10, 1e-3, 1.0]))
    tightness = rng.uniform(0.2, 0.9, rows)
    starts = np.cumsum([0, *groups[:-1]])
    limits = constant + tightness * np.maximum.reduceat(usage, starts, axis=0).sum(axis=0)
    if integral:
        limits = np.floor(limits)
    limits[rng.random(rows) < 0.3] = np.inf
    at_most, requires = [], []
    for _ in range(rng.integers(0, 3)):
        sites = tuple(int(s) for s in np.sort(rng.permutation(len(groups))[: rng.integers(1, len(groups) + 1)]))
        labels = tuple(tuple(int(x) for x in rng.integers(0, 4, groups[s])) for s in sites)
        at_most.append(AtMost(sites, labels, int(rng.integers(1, 4))))
        others = sorted(set(range(len(groups))) - set(sites))
        if others and rng.random() < 0.5:
            payer = int(rng.choice(others))
            paid = tuple(int(x) for x in rng.integers(1, 4, groups[payer]))
            at_most[-1] = replace(at_most[-1], payer=payer, paid=paid)
    for _ in range(rng.integers(0, 3)):
        site, other = (int(s) for s in rng.integers(0, len(groups), 2))
        taken, needed = (tuple(int(c) for c in np.flatnonzero(rng.random(groups[s]) < 0.5)) for s in (site, other))
        requires.append(Implies(site, taken, other, needed))
    minimise = (0,) if rng.random() < 0.6 else (0, 3)
    if len(minimise) == 2:
        usage[:, 3] *= 1.0 if integral else 1e-6
        limits[3] = np.inf
    names = ("loss", "bytes", "seconds", "link")
    return Problem(groups, names, usage, constant, limits, minimise, tuple(at_most), tuple(requires))


def brute(problem: Problem) -> float | None:
    """The least objective over every choice, or None."""
    kept = [c for c in product(*(range(n) for n in problem.groups)) if problem.keeps(c)]
    return min((problem.objective(problem.totals(c)) for c in kept), default=None)


def value(problem: Problem) -> float | None:
    try:
        return checked(problem, solve(problem, gap=0.0)).objective
    except InfeasibleProblem as failure:
        assert failure.proved
        return None


def checked(problem: Problem, solution: Solution) -> Solution:
    """What holds of every solution."""
    assert problem.keeps(solution.chosen)
    assert solution.objective == problem.objective(problem.totals(solution.chosen))
    assert solution.bound <= solution.objective
    assert all(price >= 0 for price in solution.shadow_prices.values())
    return solution


@pytest.mark.parametrize("integral", [False, True])
@pytest.mark.parametrize("first", range(0, 120, 20))
def test_agrees_with_brute_force(first: int, integral: bool) -> None:
    for seed in range(first, first + 20):
        problem = tiny(seed, integral)
        expected, found = brute(problem), value(problem)
        if expected is None:
            assert found is None, seed
        else:
            assert found == pytest.approx(expected, rel=1e-9, abs=0), seed


@pytest.mark.parametrize("integral", [False, True])
def test_proves_by_itself_what_the_other_stages_would_have_found(integral: bool) -> None:
    for seed in range(40):
        problem = tiny(seed, integral)
        reduced = reduce(problem)
        tree = reduced and build(reduced[0])
        dual = reduced and tree and bound(reduced[0], tree)
        expected = brute(problem)
        if not (reduced and tree and dual):
            assert expected is None
            continue
        proof = prove(reduced[0], tree, dual, None, 0.0, 0, 5.0)
        assert proof.infeasible == (expected is None), seed
        if expected is not None:
            assert proof.chosen is not None
            found = reduced[0].objective(reduced[0].totals(proof.chosen))
            assert found == pytest.approx(expected, rel=1e-9, abs=0)
            assert proof.bound <= expected * (1 + 1e-12)
            assert dual.value <= expected * (1 + 1e-12)


def test_infeasible_limits_are_explained_one_by_one() -> None:
    seen = 0
    for seed in range(60):
        problem = tiny(seed)
        if brute(problem) is not None:
            continue
        reports = explain(problem, gap=0.0)
        if not reports:
            assert not any(keeps_relations(problem, c) for c in product(*(range(n) for n in problem.groups)))
            continue
        seen += 1
        for row, report in zip(problem.limited, reports, strict=True):
            free = np.full(len(problem.rows), np.inf)
            others = problem.limits.copy()
            others[row] = np.inf
            assert report.least_alone == pytest.approx(brute(replace(problem, minimise=(row,), limits=free)))
            expected = brute(replace(problem, minimise=(row,), limits=others))
            assert (report.least_with_others is None) == (expected is None)
            if expected is not None:
                assert report.least_with_others == pytest.approx(expected)
                limits = problem.limits.copy()
                limits[row] = report.least_with_others
                assert value(replace(problem, limits=limits)) is not None
    assert seen > 3


def test_the_message_names_the_limit_and_the_nearest_value() -> None:
    usage = np.array([[0.0, 8.0], [5.0, 4.0]])
    problem = Problem((2,), ("loss", "bytes"), usage, np.zeros(2), np.array([np.inf, 3.0]), (0,))
    with pytest.raises(Infeasible, match=r"bytes <= 3 is below its least, 4.*bytes <= 3 would have to be 4"):
        solve(problem)


def test_contradicting_relations_are_told_from_limits() -> None:
    relations = (Implies(0, (0, 1), 1, (0,)), Implies(1, (0, 1), 0, ()))
    usage = np.zeros((4, 1))
    problem = Problem((2, 2), ("loss",), usage, np.zeros(1), np.array([5.0]), (0,), requires=relations)
    with pytest.raises(InfeasibleProblem, match="relations") as failure:
        solve(problem)
    assert failure.value.reports == ()


def test_loosening_a_limit_never_worsens() -> None:
    for seed in range(25):
        problem = tiny(seed)
        before, after = value(problem), value(replace(problem, limits=problem.limits * 1.1))
        assert before is None or (after is not None and after <= before * (1 + 1e-9))


def with_extra(problem: Problem, extra: np.ndarray, like: int) -> Problem:
    """One more candidate at site 0, related to the rest as its candidate `like` is."""
    count = problem.groups[0]
    at_most = tuple(
        replace(
            r,
            labels=tuple((*x, x[like]) if s == 0 else x for s, x in zip(r.sites, r.labels, strict=True)),
            paid=(*r.paid, r.paid[like]) if r.payer == 0 else r.paid,
        )
        for r in problem.at_most
    )

    def grown(site: int, local: tuple[int, ...]) -> tuple[int, ...]:
        return (*local, count) if site == 0 and like in local else local

    requires = tuple(
        Implies(r.site, grown(r.site, r.candidates), r.other, grown(r.other, r.other_candidates))
        for r in problem.requires
    )
    usage = np.insert(problem.usage, count, extra, axis=0)
    groups = (count + 1, *problem.groups[1:])
    return replace(problem, groups=groups, usage=usage, at_most=at_most, requires=requires)


def test_more_candidates_never_worsen_and_dominated_ones_change_nothing() -> None:
    rng = np.random.default_rng(1)
    for seed in range(25):
        problem = tiny(seed)
        before = value(problem)
        more = value(with_extra(problem, problem.usage[0] * rng.uniform(0.3, 1.5, 4), 0))
        assert before is None or (more is not None and more <= before * (1 + 1e-9))
        for worse in (problem.usage[0], problem.usage[0] * 1.5):
            same = value(with_extra(problem, worse, 0))
            assert same == (before if before is None else pytest.approx(before, rel=1e-9, abs=0))


def test_shadow_prices_bound_what_a_looser_limit_can_gain() -> None:
    priced = 0
    for seed in range(150):
        problem = tiny(seed)
        tree = build(problem)
        dual = tree and bound(problem, tree)
        if not dual or brute(problem) is None:
            continue
        for row in problem.limited:
            priced += dual.prices[row] > 0
            for share in (0.05, 0.5):
                looser = problem.limits.copy()
                looser[row] += share * abs(looser[row])
                gained = dual.prices[row] * (looser[row] - problem.limits[row])
                expected = brute(replace(problem, limits=looser))
                assert expected is not None
                assert expected >= dual.value - gained - 1e-9 * (abs(dual.value) + gained)
    assert priced > 10


def test_a_solution_has_a_shadow_price_for_every_limit() -> None:
    problem = layered(4)
    prices = checked(problem, solve(problem)).shadow_prices
    assert set(prices) == {problem.rows[r] for r in problem.limited}
    assert max(prices.values()) > 0


def layered(seed: int, layers: int = 6, heads: int = 3, classes: int = 5) -> Problem:
    """A small cut of the big case: label limits in every layer, and one choice of family over all of them."""
    rng = np.random.default_rng(seed)
    kept = np.linspace(0.1, 1.0, classes)
    blocks = []
    for _ in range(layers * heads):
        loss = rng.uniform(1, 100) * (kept**-1.5 - 1) * np.exp(rng.normal(0, 0.1, classes))
        blocks.append(np.stack([np.maximum(loss, 0), kept * 1e9, kept * 1e-3 * rng.uniform(0.8, 1.2, classes)], axis=1))
    labels = tuple(range(classes))
    relations = tuple(AtMost(tuple(range(i * heads, (i + 1) * heads)), (labels,) * heads, 2) for i in range(layers))
    families = tuple(i % 3 for i in range(classes))
    sites = layers * heads
    everywhere = AtMost(tuple(range(sites)), (families,) * sites, 2)
    limits = np.array([np.inf, sites * 0.45e9, sites * 0.5e-3])
    names = ("loss", "bytes", "seconds")
    usage = np.concatenate(blocks)
    return Problem((classes,) * sites, names, usage, np.zeros(3), limits, (0,), (*relations, everywhere))


def test_nested_relations_are_exact_in_the_tree() -> None:
    problem = layered(0)
    tree = build(problem)
    assert tree is not None and tree.exact and len(tree.components) == 1
    solution = checked(problem, solve(problem, gap=0.0, effort=20.0))
    assert solution.status == "optimal"


def test_the_tree_is_the_minimum_over_choices_and_excess_that_over_choices_with_a_candidate() -> None:
    for seed in range(25):
        problem = tiny(seed)
        choices = [c for c in product(*(range(n) for n in problem.groups)) if keeps_relations(problem, c)]
        tree = build(problem)
        if tree is None:
            assert not choices
            continue
        costs = np.random.default_rng(seed).random(len(problem.usage))
        total = {c: float(costs[problem.starts + np.array(c)].sum()) for c in choices}
        priced = tree.price(costs)
        assert priced.value.sum() == pytest.approx(min(total.values()))
        cheapest = tuple(tree.cheapest(priced).tolist())
        assert total[cheapest] == pytest.approx(min(total.values()))
        excess = tree.excess(costs)
        for site, start in enumerate(problem.starts):
            for local in range(problem.groups[site]):
                least = min((t for c, t in total.items() if c[site] == local), default=math.inf)
                assert excess[start + local] == pytest.approx(least - min(total.values()), abs=1e-12)
        wanted = np.flatnonzero(np.isfinite(excess))
        picked, query = tree.through(costs, wanted)
        for index, candidate in enumerate(wanted):
            own = picked[query == index]
            assert candidate in own
            whole = np.array(cheapest)
            sites = np.searchsorted(problem.starts, own, side="right") - 1
            whole[sites] = own - problem.starts[sites]
            assert keeps_relations(problem, whole)
            assert total[tuple(whole.tolist())] == pytest.approx(min(total.values()) + excess[candidate])


def test_a_relation_too_large_for_its_tree_leaves_a_lower_bound_and_the_rest_still_solves() -> None:
    problem = layered(1)
    exact, loose = build(problem), build(problem, most_leaves=50)
    assert exact is not None and loose is not None and exact.exact and not loose.exact
    costs = problem.usage[:, 0]
    assert loose.price(costs).value.sum() <= exact.price(costs).value.sum()
    dual = bound(problem, loose)
    assert dual is not None
    chosen = improve(problem, loose, dual, -math.inf)
    proof = prove(problem, loose, dual, chosen, 0.0, 0, 20.0)
    expected = solve(problem, gap=0.0, effort=20.0)
    assert proof.chosen is not None and problem.keeps(proof.chosen)
    assert problem.objective(problem.totals(proof.chosen)) == pytest.approx(expected.objective)
    assert dual.value <= expected.bound


def test_dividing_and_combining_keep_the_bound_below_and_the_choice_above_the_optimum() -> None:
    for seed in range(4):
        problem = layered(seed, layers=4)
        expected = solve(problem, gap=0.0, effort=20.0)
        assert expected.status == "optimal"
        tree = build(problem)
        dual = tree and bound(problem, tree)
        assert tree and dual
        chosen, proved = divide(problem, tree, dual, None, 1e-6)
        assert proved <= expected.objective * (1 + 1e-9)
        assert proved >= dual.value
        assert chosen is not None and problem.keeps(chosen)
        combined = combine(problem, tree, dual, chosen, 1e-6, 0, 1.0)
        assert combined is not None and problem.keeps(combined)
        before, after = (problem.objective(problem.totals(c)) for c in (chosen, combined))
        assert expected.objective * (1 - 1e-9) <= after <= before


def test_a_window_for_all_sites_is_chosen_as_well_as_by_trying_each() -> None:
    problem = layered(5)
    spans = tuple(range(5))
    same = AtMost(tuple(range(len(problem.groups))), (spans,) * len(problem.groups), 1)
    each = []
    for span in spans:
        only = np.full(len(problem.groups), span)
        if problem.keeps(only):
            each.append(problem.objective(problem.totals(only)))
    assert value(replace(problem, at_most=(*problem.at_most, same))) == pytest.approx(min(each))


def ringed(layers: int, windows: int, heads: int = 3) -> Problem:
    """A runtime of one length of window, each layer windowed or full (said twice), and one format for the model; the
    last site always takes what windows have where there is none."""
    rng = np.random.default_rng(layers)
    formats, sites = 3, layers * heads
    spans = (*range(windows), windows)
    pairs = [(span, form) for span in spans for form in range(formats)]
    bytes_ = np.array([(span + 1) * (4 - form) for span, form in pairs])
    blocks = [
        np.stack([rng.uniform(1, 5) * (windows - np.array(pairs)[:, 0] + np.array(pairs)[:, 1]), bytes_], axis=1)
        for _ in range(sites)
    ]
    kinds, window, form = tuple(range(len(pairs))), tuple(s for s, _ in pairs), tuple(f for _, f in pairs)
    every = tuple(range(sites))
    relations = (
        *(
            AtMost(every[i * heads : (i + 1) * heads], (shared,) * heads, 1)
            for i in range(layers)
            for shared in (kinds, window)
        ),
        AtMost((*every, sites), (*((window,) * sites), (windows,)), 2),
        AtMost(every, (form,) * sites, 1),
    )
    usage = np.vstack([*blocks, np.zeros((1, 2))])
    limits = np.array([np.inf, float(bytes_.mean()) * sites])
    return Problem((len(pairs),) * sites + (1,), ("loss", "bytes"), usage, np.zeros(2), limits, (0,), relations)


def test_one_window_and_one_format_for_many_layers_fit_in_a_tree() -> None:
    """The relations over all layers are branched over first: by layers first there would be no end."""
    tree = build(ringed(layers=30, windows=25))
    assert tree is not None and tree.exact


def test_one_window_and_one_format_are_chosen_as_well_as_by_trying_each() -> None:
    problem = ringed(layers=2, windows=2, heads=1)
    solution = checked(problem, solve(problem, gap=0.0))
    assert solution.objective == pytest.approx(brute(problem))


def test_two_of_many_classes_are_chosen_as_well_as_by_trying_every_pair() -> None:
    for seed in range(4):
        rng = np.random.default_rng(seed)
        heads, classes = 3, 130
        size = rng.integers(1, 200, classes).astype(float)
        loss = np.round(rng.uniform(1, 50, (heads, 1)) * size**-0.5 + rng.uniform(0, 2, (heads, classes)), 1)
        usage = np.stack([loss.reshape(-1), np.tile(size, heads)], axis=1)
        relation = AtMost((0, 1, 2), (tuple(range(classes)),) * heads, 2)
        limits = np.array([np.inf, 150.0])
        problem = Problem((classes,) * heads, ("loss", "bytes"), usage, np.zeros(2), limits, (0,), (relation,))
        reduced = reduce(problem)
        assert reduced is not None and len(reduced[0].usage) < len(usage)
        first, second = np.triu_indices(classes)
        expected = math.inf
        for takes in product((first, second), repeat=heads):
            total = sum(loss[head, own] for head, own in enumerate(takes))
            fits = sum(size[own] for own in takes) <= 150
            expected = min(expected, float(total[fits].min()))
        solution = checked(problem, solve(problem, gap=0.0))
        assert solution.objective == pytest.approx(expected, rel=1e-12)


def test_labels_that_cost_more_are_used_less() -> None:
    rng = np.random.default_rng(3)
    layers, heads, classes = 4, 3, 6
    heads_usage = np.stack([np.tile(np.arange(classes)[::-1] * 1.0, layers * heads), np.zeros(72)], axis=1)
    heads_usage[:, 1] = np.exp(rng.normal(0, 1, (layers * heads, 1)) * np.ones(classes)).ravel() * heads_usage[:, 0]
    used = []
    for price in (0.0, 0.5, 2.0, 100.0):
        payers = np.array([[0.0, 0.0], [0.0, price]] * layers)
        relations = tuple(
            AtMost(tuple(range(3 * i, 3 * i + 3)), (tuple(range(classes)),) * 3, 2, layers * heads + i, (1, 2))
            for i in range(layers)
        )
        usage = np.concatenate([np.stack([5 - heads_usage[:, 0], heads_usage[:, 1]], axis=1), payers])
        groups = (classes,) * layers * heads + (2,) * layers
        limits = np.array([layers * heads * 2.5, np.inf])
        problem = Problem(groups, ("bytes", "loss"), usage, np.zeros(2), limits, (1,), relations)
        solution = checked(problem, solve(problem, gap=0.0, effort=20.0))
        assert solution.status == "optimal"
        by_layer = np.array(solution.chosen[: layers * heads]).reshape(layers, heads)
        used.append(sum(len(set(own)) for own in by_layer.tolist()))
    assert used == sorted(used, reverse=True) and used[0] > used[-1] == layers


def test_the_same_problem_gives_the_same_solution() -> None:
    assert solve(layered(2), gap=1e-4) == solve(layered(2), gap=1e-4)


def test_equal_objectives_are_told_apart_by_the_tie_break_rows() -> None:
    usage = np.array([[1.0, 9.0], [1.0, 2.0], [1.0, 5.0]])
    labels = AtMost((0,), ((0, 1, 2),), 1)
    problem = Problem((3,), ("loss", "bytes"), usage, np.zeros(2), np.full(2, np.inf), (0,), (labels,), tie_break=(1,))
    assert solve(problem).chosen == (1,)


def test_a_gap_that_is_asked_for_is_kept() -> None:
    for gap in (1e-1, 1e-2, 1e-3):
        solution = checked(layered(3), solve(layered(3), gap=gap))
        assert solution.gap <= gap
        assert solution.status in ("optimal", "within gap")


def test_a_limit_met_exactly_is_kept() -> None:
    usage = np.array([[0.0, 0.1], [0.0, 0.2], [0.0, 0.3]])
    exactly = math.fsum((0.1, 0.2, 0.3))
    problem = Problem((1, 1, 1), ("loss", "bytes"), usage, np.zeros(2), np.array([np.inf, exactly]), (0,))
    assert solve(problem).chosen == (0, 0, 0)
    with pytest.raises(InfeasibleProblem):
        solve(replace(problem, limits=np.array([np.inf, np.nextafter(exactly, 0)])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"groups": ()}, "groups"),
        ({"groups": (3, 0)}, "groups"),
        ({"usage": np.zeros((2, 2))}, "usage: found shape"),
        ({"usage": np.full((3, 2), np.nan)}, "no finite number"),
        ({"usage": np.full((3, 2), -1.0)}, "negative"),
        ({"minimise": ()}, "minimise"),
        ({"minimise": (2,)}, "row outside"),
        ({"at_most": (AtMost((0,), ((1,),), 1),)}, "one label for each candidate"),
        ({"at_most": (AtMost((0,), ((1, 2),), 0),)}, "at_most"),
        ({"at_most": (AtMost((7,), ((1, 2),), 1),)}, "at_most"),
        ({"at_most": (AtMost((0,), ((1, 2),), 1, payer=0, paid=(1, 1)),)}, "payer 0"),
        ({"at_most": (AtMost((0,), ((1, 2),), 1, payer=7, paid=(1,)),)}, "payer 7"),
        ({"requires": (Implies(0, (5,), 1, (0,)),)}, "not there"),
    ],
)
def test_malformed_problems_are_refused(change: dict[str, object], message: str) -> None:
    fields: dict[str, object] = {
        "groups": (2, 1),
        "rows": ("a", "b"),
        "usage": np.zeros((3, 2)),
        "constant": np.zeros(2),
        "limits": np.ones(2),
        "minimise": (0,),
    }
    with pytest.raises(InputError, match=message):
        Problem(**{**fields, **change})  # type: ignore[arg-type]
