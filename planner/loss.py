"""The loss of a plan in nats per token: the sites' prices added up, corrected by what whole settings really measured.

To first order the losses of sites add. Measured anchors show by how much the sum is off: mildly for small losses, and
up to twofold above 0.1 nats, where errors meet errors. The correction is a monotone function of the sum,

    log(measured / sum) = a + b * sqrt(sum),    b >= 0

fitted to the anchors by least squares with a weak pull towards a = b = 0; so it never reorders two plans, and a
limit on the loss becomes a limit on the sum. What the fit leaves unexplained is the width of the interval.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError
from planner.goal import Workload
from planner.plan import Interval
from planner.profile import Anchor, ModelProfile
from planner.space import Choice, KvChoice, KvSite, Site, WeightChoice
from planner.spec import ModelSpec

PRIOR_WEIGHT = 0.5
"""How many anchors the pull towards no correction weighs."""

INTERVAL_SIGMAS = 1.645
"""Half-width of the interval in standard deviations: nine anchors in ten lie inside."""

OUTLIER = 5.0
"""Median deviations beyond which an anchor is left out, and the least logarithm that counts as one."""
OUTLIER_LEAST = 0.75

LEAST_SPREAD = 0.3
"""Relative error that is claimed at best, however well the anchors fit: they are few, and a text of another domain than
they were measured on was seen to lose 1.3 to 1.6 times as much (SmolLM2-135M, WikiText-2 beside the shipped text)."""


@dataclass(frozen=True, slots=True)
class Correction:
    """A monotone map from the sum of prices to the loss that is expected, and its relative spread (one sigma)."""

    a: float = 0.0
    b: float = 0.0
    spread: float = 0.5

    def expected(self, total: float) -> float:
        """
        >>> Correction().expected(0.1), round(Correction(a=0.1, b=0.5).expected(0.1), 4)
        (0.1, 0.1294)
        """
        return total * math.exp(self.a + self.b * math.sqrt(min(total, 4.0)))

    def interval(self, total: float) -> Interval:
        value, factor = self.expected(total), math.exp(INTERVAL_SIGMAS * self.spread)
        return Interval(value, value / factor, value * factor)

    def sum_for(self, loss_nats: float) -> float:
        """The largest sum whose expected loss is at most this, by bisection.

        >>> round(Correction(a=0.1, b=0.5).sum_for(0.1294), 3)
        0.1
        """
        low, high = 0.0, max(loss_nats, 1e-9) * math.exp(abs(self.a)) * 2
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if self.expected(middle) <= loss_nats else (low, middle)
        return low


def fit(anchors: Iterable[Anchor]) -> Correction:
    """The correction that explains the anchors.

    >>> exact = [Anchor("", 512, x, 1.3 * x) for x in (0.01, 0.03, 0.1, 0.3)] * 4
    >>> correction = fit(exact)
    >>> abs(correction.expected(0.05) / 0.065 - 1) < 0.05, correction.spread
    (True, 0.3)

    One anchor in five may lie anywhere (a setting that only fails where the calibration looks for it):

    >>> fit([*exact[:7], Anchor("", 512, 0.1, 0.02)]) == fit(exact[:7])
    True
    """
    pairs = [(a.predicted_nats, a.measured_nats) for a in anchors if a.predicted_nats > 0 and a.measured_nats > 0]
    if not pairs:
        return Correction()
    x, y = np.array([p for p, _ in pairs]), np.log([m / p for p, m in pairs])
    off = np.abs(y - np.median(y))
    inside = off <= max(OUTLIER * float(np.median(off)), OUTLIER_LEAST)
    if (~inside).sum() <= len(pairs) // 5:
        x, y = x[inside], y[inside]
    columns = np.stack([np.ones_like(x), np.sqrt(x)], 1)
    pull = PRIOR_WEIGHT * np.diag([1.0, float(np.mean(x))])
    a, b = np.linalg.solve(columns.T @ columns + pull, columns.T @ y)
    if b < 0:
        a, b = float(y.sum() / (len(y) + PRIOR_WEIGHT)), 0.0
    left = y - a - b * np.sqrt(x)
    spread = math.sqrt(float((left**2).sum()) / max(len(x) - 2, 1))
    return Correction(float(a), float(b), max(spread, LEAST_SPREAD))


@dataclass
class LossModel:
    """Prices of choices under one profile and workload, and the expected loss of their sum."""

    spec: ModelSpec
    profile: ModelProfile
    workload: Workload
    correction: Correction
    _index: dict[Site, int] = field(init=False)
    _shares: NDArray[np.float64] = field(init=False)

    def __post_init__(self) -> None:
        kv, weights = self.profile.kv.sites, self.profile.weights.sites
        self._index = {site: i for i, site in enumerate(kv)} | {site: i for i, site in enumerate(weights)}
        shares = dict(zip(self.workload.context_tokens, self.workload.shares, strict=True))
        known = self.profile.context_tokens
        missing = [str(context) for context in shares if context not in known]
        if missing:  # a length without prices would cost nothing
            raise InputError(
                f"workload.context_tokens: {', '.join(missing)} not in the profile, which has"
                f" {', '.join(map(str, known)) or 'none'}; take those lengths, or profile the model for this workload"
            )
        self._shares = np.array([shares.get(context, 0.0) for context in known])

    def price(self, site: Site, choice: Choice) -> float:
        """Nats per token of one choice with every other site dense; NaN where the site cannot take it."""
        return self.prices(site, (choice,))[0]

    def prices(self, site: Site, choices: Sequence[Choice]) -> list[float]:
        """The price of each of many choices of one site, together much faster than one by one."""
        index = self._index[site]
        if not isinstance(site, KvSite):
            weights = (choice for choice in choices if isinstance(choice, WeightChoice))
            return [self.profile.weights.price(index, choice.format) for choice in weights]
        layer, contexts = self.spec.layers[site.layer], self.profile.context_tokens
        kv = [choice for choice in choices if isinstance(choice, KvChoice)]
        by_length = self.profile.kv.prices(index, kv, layer, contexts) * self._shares
        # Added length by length, so that the last digit does not hang on a library.
        found: list[float] = sum(by_length.T, np.zeros(len(kv))).tolist()
        return found

    def total(self, chosen: Mapping[Site, Choice]) -> float:
        """The sum of the prices of a full choice."""
        return math.fsum(self.price(site, choice) for site, choice in chosen.items())

    def predicted(self, chosen: Mapping[Site, Choice]) -> Interval:
        """The loss that running a full choice is expected to show."""
        return self.correction.interval(self.total(chosen))
