"""Whole settings for a runtime that has one format of keys and one of values: mixtures of weight formats, and caches.

Each mixture is one as a solver would make it: at each matrix the format with the least loss + price of a byte * bytes,
the price set so that the losses sum to a wanted total.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from planner.executor import Capabilities
from planner.formats import weight_bytes
from planner.profile import ModelProfile
from planner.space import Choice, Full, KvChoice, Site, Tier, WeightChoice, WeightFormat
from planner.spec import ModelSpec

Named = tuple[str, dict[Site, Choice], float]


def mixtures(
    profile: ModelProfile, spec: ModelSpec, can: Capabilities, totals: Sequence[float], whole: KvChoice
) -> Iterator[Named]:
    """(name, setting, sum of its prices) of matrices in many formats, every head keeping `whole`."""
    forms = [WeightFormat(32), *(form for form in profile.weights.formats if can.stores(form))]
    losses = np.array([[profile.weights.price(i, form) for form in forms] for i in range(len(spec.tensors))])
    losses = np.where(np.isnan(losses), np.inf, losses)
    sizes = np.array([[weight_bytes(tensor, form) for form in forms] for tensor in spec.tensors])
    for total in totals:
        picks = cheapest(losses, sizes, total)
        chosen: dict[Site, Choice] = dict.fromkeys(profile.kv.sites, whole)
        for site, i in zip(profile.weights.sites, picks, strict=True):
            chosen[site] = WeightChoice(forms[i], whole.tier)
        summed = float(losses[np.arange(len(picks)), picks].sum())
        yield f"weights mixed for {total:g} nats", chosen, summed


def cheapest(losses: NDArray[np.float64], sizes: NDArray[np.float64], total: float) -> NDArray[np.intp]:
    """The column of each row in which losses sum to about a total and sizes to as little as they can.

    >>> cheapest(np.array([[0.0, 0.1], [0.0, 1.0]]), np.array([[8.0, 4.0], [8.0, 4.0]]), 0.2).tolist()
    [1, 0]
    """
    low, high = -40.0, 10.0  # logarithm of the price of a byte in nats
    rows = np.arange(len(losses))
    for _ in range(60):
        price = (low + high) / 2
        picks = (losses + np.exp(price) * sizes).argmin(1)
        low, high = (price, high) if losses[rows, picks].sum() < total else (low, price)
    found: NDArray[np.intp] = (losses + np.exp(low) * sizes).argmin(1)
    return found


def caches(profile: ModelProfile, can: Capabilities, tier: Tier, weights: Mapping[Site, Choice]) -> Iterator[Named]:
    """(name, setting, sum of its prices) of one format of keys and one of values for all heads, nothing leaving: both
    in each format there is, and the widest keys with the narrowest values."""
    coded = [form for form in profile.kv.k_formats if form.scheme != "float" and form in profile.kv.v_formats]
    if not coded:
        return
    pairs = [(form, form) for form in coded]
    pairs.append((max(coded, key=lambda form: form.bits), min(coded, key=lambda form: form.bits)))
    for k, v in pairs:
        kept = KvChoice(Full(), k, v, profile.kv.sinks, tier)
        if can.carries(kept):
            place = (-1, profile.kv.k_formats.index(k), profile.kv.v_formats.index(v), -1)
            every: dict[Site, Choice] = dict.fromkeys(profile.kv.sites, kept)
            summed = float(profile.kv.loss[:, *place].sum())
            yield f"keys {k.scheme}, values {v.scheme}", {**every, **weights}, summed
