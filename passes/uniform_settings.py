"""Every setting a user could write by hand: one for all KV heads, one for all matrices.

Not a pass: plans that compete with the solver's. The best of them are run beside it, and are what is left to fall back
on where the plan does not keep what it promised.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from passes.spans import effective
from planner.pipeline import PassContext
from planner.prices import LOSS, PriceTable, limit
from planner.space import (
    Choice,
    KvChoice,
    KvSite,
    Site,
    Space,
    Tier,
    WeightChoice,
    WeightFormat,
    WeightSite,
    attribute,
    violated,
)

Floats = NDArray[np.float64]
Rows = Mapping[Site, Mapping[Choice, int]]


@dataclass(frozen=True, slots=True)
class Setting:
    """A choice for every site of one kind, and what they use together."""

    chosen: dict[Site, Choice]
    used: Floats


def uniform_settings(space: Space, ctx: PassContext, most: int = 3) -> tuple[Space, ...]:
    """The best `most` settings that keep the limits, best first, each as a space with one candidate per site.

    Among the candidates of a widened space, all KV sites take the same span, formats and tier, and all matrices the
    same format (what its source has counts as one) and tier. A layer trained with a window no longer than the span
    keeps all of that window; a matrix that cannot take the format stays as it was. Of settings with the same cache and
    the same loss, which differ only in how lossless matrices are stored, only the best is told.
    """
    table = ctx.price(space)
    rows = row_numbers(space)
    kv = list(kv_settings(space, table, rows, ctx))
    weights = list(weight_settings(space, table, rows))
    totals = table.constant + np.array([[a.used + b.used for b in weights] for a in kv]).reshape(-1, len(table.rows))
    found: list[Space] = []
    told: set[tuple[int, float]] = set()
    losses = totals[:, table.rows.index(LOSS)]
    # Nothing was chosen by what it seems to lose.
    own = limit(LOSS, ctx.spec, ctx.workload, ctx.goal, ctx.hardware, ctx.loss, solved=False)
    table = replace(table, limits=np.where(np.array(table.rows) == LOSS, own, table.limits))
    for number in ranked(totals, table):
        first, second = divmod(number, len(weights))
        alike = first, round(float(losses[number]), 5)
        if alike in told:
            continue
        told.add(alike)
        chosen = {**kv[first].chosen, **weights[second].chosen}
        if violated(chosen, space.constraints) is None:
            found.append(space.choose(chosen))
        if len(found) == most:
            break
    return tuple(found)


def ranked(totals: Floats, table: PriceTable) -> list[int]:
    """The rows of totals that keep the limits, the best objective first; ties as the table breaks them."""
    kept = np.flatnonzero((totals <= table.limits).all(axis=1))
    objective = totals[:, list(table.minimise)].max(axis=1)
    ties = [totals[kept, row] for row in reversed(table.tie_break)]
    order: list[int] = kept[np.lexsort((*ties, objective[kept]))].tolist()
    return order


def kv_settings(space: Space, table: PriceTable, rows: Rows, ctx: PassContext) -> Iterator[Setting]:
    """The settings that all KV sites can take."""
    sites = [site for site in space.sites if isinstance(site, KvSite)]
    if not sites:
        yield Setting({}, np.zeros(len(table.rows)))
    # Heads often share one tuple of candidates.
    tuples = {id(space.candidates[site]): space.candidates[site] for site in sites}
    offered = dict.fromkeys(choice for choices in tuples.values() for choice in choices)
    for wanted in (choice for choice in offered if isinstance(choice, KvChoice)):
        chosen: dict[Site, Choice] = {}
        for site in sites:
            choice = wanted
            if choice not in rows[site]:
                choice = replace(wanted, span=effective(wanted.span, site.layer, ctx))
            if choice not in rows[site]:
                break
            chosen[site] = choice
        if sites and len(chosen) == len(sites):
            yield Setting(chosen, used(chosen, table, rows))


def weight_settings(space: Space, table: PriceTable, rows: Rows) -> Iterator[Setting]:
    """The settings of matrices: a format, or what the source has, in one tier."""
    sites = [site for site in space.sites if isinstance(site, WeightSite)]
    if not sites:
        yield Setting({}, np.zeros(len(table.rows)))
    wanted: dict[tuple[WeightFormat | str, Tier], None] = {}
    for site in sites:
        for choice in space.candidates[site]:
            if isinstance(choice, WeightChoice):
                wanted[kind(choice.format), choice.tier] = None
    for form, tier in wanted:
        chosen: dict[Site, Choice] = {site: in_format(space.candidates[site], form, tier) for site in sites}
        yield Setting(chosen, used(chosen, table, rows))


def kind(form: WeightFormat) -> WeightFormat | str:
    """What all matrices are to share: a format, or the name of the scheme that keeps each as its source has it."""
    return form.scheme if form.as_source else form


def in_format(choices: Sequence[Choice], wanted: WeightFormat | str, tier: Tier) -> Choice:
    """The candidate in a tier and of a kind, or in the format the site started from."""
    there = [choice for choice in choices if isinstance(choice, WeightChoice) and choice.tier == tier]
    for choice in there:
        if kind(choice.format) == wanted:
            return choice
    return next((choice for choice in there if choice.format == attribute(choices[0], "format")), choices[0])


def row_numbers(space: Space) -> Rows:
    """For every site where each of its candidates is in the price table."""
    numbers: dict[Site, Mapping[Choice, int]] = {}
    start = 0
    for site, choices in space.candidates.items():
        numbers[site] = {choice: start + i for i, choice in enumerate(choices)}
        start += len(choices)
    return numbers


def used(chosen: dict[Site, Choice], table: PriceTable, rows: Rows) -> Floats:
    """What some choices use together."""
    found: Floats = table.usage[[rows[site][choice] for site, choice in chosen.items()]].sum(axis=0)
    return found
