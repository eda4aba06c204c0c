"""Windows that keep at least so many tokens at every length of a workload: how rules of several heads become one.

KV heads are what a cache stores, so a rule that was published for each query head is folded: a KV head keeps what the
most demanding of its query heads asks for. The largest of rules alpha + beta * N is no such rule where they cross, and
a `Window` is one: the window found here meets it at the longest length and keeps more in between where it must.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from math import inf

from planner.space import Full, Span, Window


def window_over(needs: Mapping[int, int], betas: Iterable[float]) -> Window:
    """The least window that keeps `needs` tokens, by context length, growing by one of `betas` or as the needs do.

    Least counts at the longest length first, then over all lengths; of equals, the one that keeps more below them.

    >>> window_over({2048: 1024}, (0.5,)), window_over({2048: 1000}, (0.5,))
    (Window(alpha=0, beta=0.5), Window(alpha=-24, beta=0.5))

    Half of the context, but 1,024 tokens at least: no line is both, and one between the ends covers them.

    >>> window_over({1024: 1024, 4096: 2048}, (0.5,))
    Window(alpha=683, beta=0.3333333333333333)
    """
    shortest, longest = min(needs), max(needs)
    slopes = set(betas)
    if shortest < longest:
        slopes.add((needs[longest] - needs[shortest]) / (longest - shortest))

    def over(beta: float) -> Window:
        alpha = max(tokens - round(beta * context) for context, tokens in needs.items()) - 1
        while any(round(alpha + beta * context) < tokens for context, tokens in needs.items()):
            alpha += 1
        return Window(alpha, beta)

    def size(window: Window) -> tuple[int, int, float]:
        kept = {context: round(window.alpha + window.beta * context) for context in needs}
        return kept[longest], sum(kept.values()), window.beta

    return min((over(beta) for beta in slopes), key=size)


def covering(spans: Sequence[Span], contexts: Sequence[int]) -> Span:
    """The least span that keeps at every length what each of some spans does.

    >>> covering((Window(64), Window(0, 0.25)), (512,)), covering((Window(64), Full()), (512,))
    (Window(alpha=0, beta=0.25), Full())
    """
    windows = [span for span in spans if isinstance(span, Window)]
    if len(windows) < len(spans) or not windows:
        return Full()
    needs = {context: max(window.tokens(context) for window in windows) for context in contexts}
    longest = max(contexts)
    return window_over(needs, {w.beta for w in windows if w.tokens(longest) == needs[longest]})


def merged(spans: Sequence[Span], most: int, contexts: Sequence[int]) -> tuple[Span, ...]:
    """The spans of a layer's heads as at most `most` different ones that keep no less, at the fewest tokens in all.

    >>> merged((Window(64), Window(64), Window(96), Full()), 2, (512,))
    (Window(alpha=96, beta=0.0), Window(alpha=96, beta=0.0), Window(alpha=96, beta=0.0), Full())
    """
    longest = max(contexts)

    def size(span: Span) -> float:
        return longest if isinstance(span, Full) else span.tokens(longest)

    distinct = sorted(set(spans), key=lambda span: (size(span), repr(span)))
    if len(distinct) <= most:
        return tuple(spans)
    best, least = {span: span for span in distinct}, inf
    for cuts in combinations(range(1, len(distinct)), most - 1):
        starts, ends = (0, *cuts), (*cuts, len(distinct))
        cover: dict[Span, Span] = {}
        for start, end in zip(starts, ends, strict=True):
            block = distinct[start:end]
            cover |= dict.fromkeys(block, covering(block, contexts))
        total = sum(size(cover[span]) for span in spans)
        if total < least:
            best, least = cover, total
    return tuple(best[span] for span in spans)
