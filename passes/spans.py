"""Spans offered at KV sites: which ones make a difference there, and which options of a pass can be windows."""

from collections.abc import Callable, Iterable, Sequence

from planner.errors import InputError
from planner.formats import slots
from planner.pipeline import PassContext
from planner.space import FLOAT16, Choice, Full, KvChoice, KvFormat, KvSite, Site, Space, Span, Tier


def coded_tokens(layer: int, ctx: PassContext) -> int:
    """Tokens that a head of the layer caches at the longest context beside its protected ones: what Full keeps."""
    full = KvChoice(Full(), FLOAT16, FLOAT16, ctx.sinks, ctx.home)
    return slots(full, ctx.spec.layers[layer], ctx.workload.longest_tokens)[1]


def effective(span: Span, layer: int, ctx: PassContext) -> Span:
    """The span, or Full where it drops nothing of the layer's cache at the longest context."""
    if isinstance(span, Full) or span.tokens(ctx.workload.longest_tokens) < coded_tokens(layer, ctx):
        return span
    return Full()


def offer(space: Space, ctx: PassContext, spans: Callable[[KvSite], Iterable[Span]]) -> Space:
    """The space with these spans and Full offered at every KV site; as it was where nothing says what they cost."""
    if ctx.loss is None:
        return space
    offered = {
        site: tuple(dict.fromkeys((Full(), *(effective(span, site.layer, ctx) for span in spans(site)))))
        for site in space.sites
        if isinstance(site, KvSite)
    }

    done: set[tuple[Site, KvFormat, KvFormat, Tier]] = set()

    def variants(site: Site, choice: Choice) -> Iterable[Choice]:
        # Candidates that differ only in their span have the same variants.
        if not (isinstance(site, KvSite) and isinstance(choice, KvChoice)):
            return ()
        if (key := (site, choice.k, choice.v, choice.tier)) in done:
            return ()
        done.add(key)
        return [KvChoice(span, choice.k, choice.v, choice.sinks, choice.tier) for span in offered[site]]

    return space.widen(variants)


def check_tokens(where: str, tokens: Sequence[int]) -> None:
    """InputError unless there are some, and all can be windows."""
    if not tokens or min(tokens) < 1:
        raise InputError(f"{where}: found {list(tokens)}; give windows of at least one token")


def check_shares(where: str, shares: Sequence[float]) -> None:
    """InputError unless there are some, all between 0 and 1."""
    if not shares or min(shares) <= 0 or max(shares) >= 1:
        raise InputError(f"{where}: found {list(shares)}; give shares of the cache above 0 and below 1")
