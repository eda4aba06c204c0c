"""The loss of a plan in nats per token: the sites' prices added up, corrected by what whole settings really measured.

To first order the losses of sites add. Measured anchors show by how much the sum is off, in two ways. Errors meet
errors: above 0.1 nats a sum is too low, up to twofold. And prices are estimates: a plan that takes at every site what
looks cheapest takes what is underestimated, the more so the less it may lose, while a plan that prices did not make is
as often over- as underestimated. So the correction of solved plans is fitted to anchors that were made by price, and
that of all others to all anchors. Both are monotone functions of the sum s,

    measured = linear * s + root * s^(1/2) + power * s^(3/2),    none of them below 0

fitted by least squares of the relative error with a weak pull towards measured = s; so neither reorders two plans, and
a limit on the loss becomes a limit on the sum. What the fit leaves unexplained is the width of the interval.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from planner.errors import InputError
from planner.goal import Workload
from planner.plan import Interval
from planner.profile import Anchor, ModelProfile
from planner.space import Choice, KvChoice, KvSite, Site, WeightChoice
from planner.spec import ModelSpec

PRIOR_WEIGHT = 0.1
"""How many anchors the pull towards no correction weighs."""

INTERVAL_SIGMAS = 1.645
"""Half-width of the interval in standard deviations: nine anchors in ten lie inside."""

OUTLIER = 5.0
"""Median deviations beyond which an anchor is left out, and the least logarithm that counts as one."""
OUTLIER_LEAST = 0.75

LEAST_SPREAD = 0.2
"""Relative error that is claimed at best, however well the anchors fit: they are few, and so are their documents. Of
three plans on three texts of other kinds (SmolLM2-135M, 2,048 tokens) eight of nine means were inside."""

LEAST_LINEAR = 0.25
"""Of a sum at least so much is lost, whatever the anchors say."""

FEWEST_CHOSEN = 3
"""Anchors made by price that a correction of their own takes."""


@dataclass(frozen=True, slots=True)
class Correction:
    """A monotone map from the sum of prices to the loss that is expected, and its relative spread (one sigma)."""

    linear: float = 1.0
    root: float = 0.0
    power: float = 0.0
    spread: float = 0.5

    def expected(self, total: float) -> float:
        """
        >>> Correction().expected(0.1), round(Correction(0.8, 0.1, 0.5).expected(0.04), 4)
        (0.1, 0.056)
        """
        root = math.sqrt(total)
        return self.linear * total + self.root * root + self.power * total * min(root, 2.0)

    def interval(self, total: float) -> Interval:
        value, factor = self.expected(total), math.exp(INTERVAL_SIGMAS * self.spread)
        return Interval(value, value / factor, value * factor)

    def sum_for(self, loss_nats: float) -> float:
        """The largest sum whose expected loss is at most this, by bisection.

        >>> round(Correction(0.8, 0.1, 0.5).sum_for(0.056), 4)
        0.04
        """
        low, high = 0.0, loss_nats / self.linear
        for _ in range(100):
            middle = (low + high) / 2
            low, high = (middle, high) if self.expected(middle) <= loss_nats else (low, middle)
        return low

    def through(self, total: float, loss_nats: float) -> "Correction":
        """The same curve, scaled so that a sum is expected to lose what a plan of that sum was measured to; tenfold at
        most, either way.

        >>> round(Correction(0.8, 0.1, 0.5).through(0.04, 0.028).expected(0.04), 4)
        0.028
        """
        factor = min(max(loss_nats / self.expected(total), 0.1), 10.0)
        return replace(self, linear=self.linear * factor, root=self.root * factor, power=self.power * factor)


def fit(anchors: Iterable[Anchor]) -> Correction:
    """The correction that explains the anchors.

    >>> exact = [Anchor("", 512, x, 0.8 * x + 0.1 * x**0.5) for x in (0.01, 0.03, 0.1, 0.3)] * 4
    >>> correction = fit(exact)
    >>> abs(correction.expected(0.05) / 0.0624 - 1) < 0.05, correction.spread
    (True, 0.2)

    One anchor in five may lie anywhere (a setting that only fails where the calibration looks for it):

    >>> fit([*exact[:7], Anchor("", 512, 0.1, 0.01)]) == fit(exact[:7])
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
    terms = _terms(x, np.exp(y))
    left = np.log(np.stack([np.ones_like(x), x**-0.5, x**0.5], 1) @ terms) - y
    spread = math.sqrt(float((left**2).sum()) / max(len(x) - 2, 1))
    linear, root, power = terms.tolist()
    return Correction(linear, root, power, max(spread, LEAST_SPREAD))


def _terms(sums: NDArray[np.float64], ratio: NDArray[np.float64]) -> NDArray[np.float64]:
    """(linear, root, power), none below its least, by least squares of what they leave of measured over sum, as a share
    of it; every set of terms that stay at their least is tried."""
    scale = np.array([1.0, float(np.mean(sums**-0.5)), float(np.mean(sums**0.5))])
    pull = math.sqrt(PRIOR_WEIGHT) * np.diag(scale)
    rows = np.concatenate([np.stack([np.ones_like(sums), sums**-0.5, sums**0.5], 1) / ratio[:, None], pull])
    wanted = np.concatenate([np.ones_like(ratio), pull[:, 0]])
    least = np.array([LEAST_LINEAR, 0.0, 0.0])
    found = []
    for free in (each for count in range(4) for each in combinations(range(3), count)):
        terms = least.copy()
        if free:
            solved, *_ = np.linalg.lstsq(rows[:, free], wanted - rows @ least + rows[:, free] @ least[list(free)])
            terms[list(free)] = solved
        if (terms >= least).all():
            found.append((float(np.square(rows @ terms - wanted).sum()), terms))
    return min(found, key=lambda each: each[0])[1]


def fitted(spec: ModelSpec, profile: ModelProfile, workload: Workload) -> "LossModel":
    """The loss model of a profile, both corrections fitted to its anchors."""
    chosen = [anchor for anchor in profile.anchors if anchor.chosen]
    every = fit(profile.anchors)
    return LossModel(spec, profile, workload, fit(chosen) if len(chosen) >= FEWEST_CHOSEN else every, every)


@dataclass
class LossModel:
    """Prices of choices under one profile and workload, and the expected loss of their sum: by `correction` of plans
    that prices made, by `plain` of others."""

    spec: ModelSpec
    profile: ModelProfile
    workload: Workload
    correction: Correction
    plain: Correction
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

    def predicted(self, chosen: Mapping[Site, Choice], solved: bool) -> Interval:
        """The loss that running a full choice is expected to show; `solved` where prices made it."""
        return (self.correction if solved else self.plain).interval(self.total(chosen))
