"""Every candidate as the runtime can carry it: whole pages, formats it stores, memory it reads from.

A window is rounded up, so that the longest context fills whole pages; a window that then holds all there is becomes
Full. Candidates in a format that the runtime does not store are dropped; what a source stores travels as it is. A
runtime that fetches nothing from slower tiers keeps all in the fastest. Comes before pruning and solving, so that what
is priced is what will run.
"""

from dataclasses import dataclass, replace
from math import ceil
from typing import ClassVar

from passes.spans import effective
from planner.errors import InputError
from planner.pipeline import PassContext
from planner.space import Choice, Constraint, Full, KvChoice, KvSite, Requires, Site, Space, Span, Window


@dataclass(frozen=True, slots=True)
class Legalise:
    """Rounds windows to the runtime's pages and drops formats it does not store."""

    name: ClassVar[str] = "legalise"

    def run(self, space: Space, ctx: PassContext) -> Space:
        kept: dict[Site, tuple[Choice, ...]] = {}
        # Heads of a layer mostly share one tuple of candidates.
        known: dict[tuple[int, int], tuple[Choice, ...]] = {}
        for site, choices in space.candidates.items():
            key = site.layer, id(choices)
            legal = known[key] = known.get(key) or legal_choices(site, choices, ctx)
            if not legal:
                raise InputError(
                    f"{site}: {ctx.capabilities.runtime} {ctx.capabilities.version} stores none of the formats offered "
                    f"for it; offer those it stores (kv-bits, weight-bits) or plan for another backend"
                )
            kept[site] = legal
        return Space(kept, tuple(_legal(constraint, ctx) for constraint in space.constraints))


def legal_choices(site: Site, choices: tuple[Choice, ...], ctx: PassContext) -> tuple[Choice, ...]:
    """The choices that the runtime can carry, rounded to its pages, each once and in the same order."""
    spans = {choice.span for choice in choices if isinstance(choice, KvChoice)}
    whole = {span: paged(span, site, ctx) for span in spans}
    # A model trained with windows has a length of its own, and a runtime with one has room for no other.
    taken = ctx.capabilities.spans == "model" and any(layer.window is not None for layer in ctx.spec.layers)
    found: dict[Choice, None] = {}
    for choice in choices:
        if choice.tier != ctx.home and not ctx.capabilities.offloads:
            continue
        if not isinstance(choice, KvChoice):
            if ctx.capabilities.stores(choice.format):
                found[choice] = None
            continue
        span = whole[choice.span]
        legal = choice if span == choice.span else replace(choice, span=span)
        if ctx.capabilities.carries(legal) and not (taken and isinstance(span, Window)):
            found[legal] = None
    return tuple(found)


def paged(span: Span, site: Site, ctx: PassContext) -> Span:
    """The span rounded up to whole pages at the longest context; as long at every other where windows do not grow."""
    if isinstance(span, Full) or not isinstance(site, KvSite):
        return span
    page, tokens = ctx.capabilities.window_page_tokens, span.tokens(ctx.workload.longest_tokens)
    missing = ceil(tokens / page) * page - tokens
    grown = Window(span.alpha + missing, span.beta) if ctx.capabilities.elastic else Window(tokens + missing)
    return effective(grown, site.layer, ctx)


def _legal(constraint: Constraint, ctx: PassContext) -> Constraint:
    """The constraint, the choices it names rounded as the candidates are."""
    if not isinstance(constraint, Requires):
        return constraint
    return replace(
        constraint,
        choices=frozenset(legal_choices(constraint.site, tuple(constraint.choices), ctx)),
        other_choices=frozenset(legal_choices(constraint.other, tuple(constraint.other_choices), ctx)),
    )
