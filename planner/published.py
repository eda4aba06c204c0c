"""A plan that somebody published: how many tokens every query head keeps, and what that comes to on KV heads."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor
from typing import Protocol

from planner.folding import window_over
from planner.formats import slots
from planner.goal import Workload
from planner.space import Chosen, Full, KvChoice, KvSite, Span
from planner.spec import LayerSpec, ModelSpec

SLACK = 1e-6
"""What a product of a share and a length may miss a whole number of tokens by."""


@dataclass(frozen=True, slots=True)
class Rule:
    """Tokens that a head keeps of a context of N, protected ones included: the largest of `lines` alpha + beta * N,
    cut to whole tokens, rounded up to a `multiple` and never more than N.

    Half of the context in blocks of 64, and no fewer than 128 tokens:

    >>> half = Rule(((0.0, 0.5), (128.0, 0.0)), 64)
    >>> [half.tokens(context) for context in (100, 200, 1000, 1024)]
    [100, 128, 512, 512]
    """

    lines: tuple[tuple[float, float], ...]
    multiple: int = 1

    def tokens(self, context_tokens: int) -> int:
        """Tokens kept of a context."""
        return min(context_tokens, self.asked(context_tokens))

    def asked(self, context_tokens: int) -> int:
        """Tokens asked for, which may be more than there are."""
        most = max(alpha + beta * context_tokens for alpha, beta in self.lines)
        return ceil(floor(most + SLACK) / self.multiple) * self.multiple

    def span(self, sinks: int, contexts: Sequence[int]) -> Span:
        """The least window beside `sinks` protected tokens that keeps no less at any of these lengths."""
        if any(alpha >= 0 and beta >= 1 for alpha, beta in self.lines):
            return Full()
        longest = max(contexts)
        most = max(alpha + beta * longest for alpha, beta in self.lines)
        betas = {beta for alpha, beta in self.lines if floor(alpha + beta * longest + SLACK) >= floor(most + SLACK)}
        return window_over({context: max(1, self.asked(context) - sinks) for context in contexts}, betas)


EVERY_TOKEN = Rule(((0.0, 1.0),))


def folded(rules: Iterable[Rule]) -> Rule:
    """The rule of a KV head whose query heads have these: at every length it keeps what the largest of them does.

    >>> folded((Rule(((0.0, 0.5),)), Rule(((0.0, 0.5),)))) == Rule(((0.0, 0.5),))
    True
    """
    group = tuple(rules)
    lines = dict.fromkeys(line for rule in group for line in rule.lines)
    return Rule(tuple(lines), max(rule.multiple for rule in group))


@dataclass(frozen=True, slots=True)
class Published:
    """A plan as it was published, for every query head.

    `rules` is [layers][query heads], all with one multiple; `told_for` is what the file tells apart (query heads, KV
    heads, layers). `options` are those that the file was read with, and `notes` say what the method does that the plan
    does not.
    """

    method: str
    file: str
    sha256: str
    told_for: str
    rules: tuple[tuple[Rule, ...], ...]
    sinks: int
    options: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def spelled(self) -> str:
        """How a plan names where it came from."""
        return f"import-{self.method}{{{';'.join((f'file={self.file}', f'sha256={self.sha256}', *self.options))}}}"

    def groups(self, spec: ModelSpec) -> Iterable[tuple[KvSite, tuple[Rule, ...]]]:
        """Every KV head with the rules of its query heads: head q belongs to KV head q // group."""
        for index, (layer, rules) in enumerate(zip(spec.layers, self.rules, strict=True)):
            for head in range(layer.kv_heads):
                yield KvSite(index, head), rules[head * layer.group : (head + 1) * layer.group]

    def mixed(self, spec: ModelSpec, context_tokens: int) -> int:
        """How many KV heads have query heads that ask for different numbers of tokens."""
        return sum(len({rule.tokens(context_tokens) for rule in rules}) > 1 for _, rules in self.groups(spec))

    def density(self, spec: ModelSpec, context_tokens: int) -> float:
        """The share of the cache that is kept as published: every query head counted for itself."""
        kept = [
            (min(rule.tokens(context_tokens), reach(layer, context_tokens)), reach(layer, context_tokens))
            for layer, rules in zip(spec.layers, self.rules, strict=True)
            for rule in rules
        ]
        return sum(tokens for tokens, _ in kept) / sum(most for _, most in kept)

    def choice(self, rules: Sequence[Rule], layer: LayerSpec, contexts: Sequence[int], stored: KvChoice) -> KvChoice:
        """What a KV head keeps whose query heads have these rules, as a window that keeps no less at these lengths;
        formats and tier are those of `stored`."""
        # In a layer trained with a sliding window the first tokens leave it with the rest: none is protected.
        beside = self.sinks if layer.window is None else 0
        return replace(stored, span=folded(rules).span(beside, contexts), sinks=self.sinks)


class PublishedFile(Protocol):
    """A file in one of the published formats."""

    def read(self, spec: ModelSpec, workload: Workload) -> Published:
        """The plan, for a model of these shapes; InputError where the file is damaged or is another model's."""
        ...


def reach(layer: LayerSpec, context_tokens: int) -> int:
    """Tokens that a head of the layer caches where nothing is dropped."""
    return context_tokens if layer.window is None else min(layer.window, context_tokens)


def stored_density(chosen: Chosen, spec: ModelSpec, context_tokens: int) -> float:
    """The share of the cache that a plan stores: slots that its KV heads allocate over those of a full cache."""
    kept = every = 0
    for site, choice in chosen.items():
        if isinstance(site, KvSite) and isinstance(choice, KvChoice):
            kept += sum(slots(choice, spec.layers[site.layer], context_tokens))
            every += reach(spec.layers[site.layer], context_tokens)
    return kept / every
