"""Whole settings really measured, to learn by how much the sum of prices is off.

Two uniform settings, two random mixtures, and mixtures as a solver would make them: at each site the choice with the
least loss + price of a byte * bytes, the price set so that the losses sum to a wanted total.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from planner.executor import Executor, Progress
from planner.formats import head_bytes
from planner.goal import Workload
from planner.plan import trial
from planner.profile import Anchor, ModelProfile
from planner.quality import compare
from planner.space import FLOAT32, Choice, Full, KvChoice, Site, Span, Tier, WeightChoice, WeightFormat, Window
from planner.spec import ModelSpec
from profiles.model import document_sha256
from profiles.parts import Parts

TOTALS_NATS = (0.01, 0.03, 0.1, 0.3)

HERE: Tier = (("dram", 1.0),)


@dataclass(frozen=True)
class Setting:
    """A whole setting and what its prices sum to."""

    name: str
    kv: dict[Site, Choice]
    predicted_nats: float


def settings(profile: ModelProfile, spec: ModelSpec, seed: int) -> Iterator[Setting]:
    """The settings to measure, all weights dense; losses at the profile's longest context."""
    spans: tuple[Span, ...] = (*(Window(w) for w in profile.kv.windows), Full())
    choices = [
        KvChoice(span, k, v, profile.kv.sinks, HERE)
        for span in spans
        for k in profile.kv.k_formats
        for v in profile.kv.v_formats
    ]
    losses = profile.kv.loss[..., -1].reshape(len(profile.kv.sites), -1)
    context = max(profile.context_tokens)
    sizes = np.array([[head_bytes(c, spec.layers[s.layer], context) for c in choices] for s in profile.kv.sites])
    every = np.arange(len(profile.kv.sites))

    def setting(name: str, picks: NDArray[np.intp]) -> Setting:
        kv: dict[Site, Choice] = {site: choices[i] for site, i in zip(profile.kv.sites, picks, strict=True)}
        return Setting(name, kv, float(losses[every, picks].sum()))

    for total in TOTALS_NATS:
        low, high = -40.0, 10.0  # logarithm of the price of a byte in nats
        for _ in range(60):
            price = (low + high) / 2
            picks = (losses + np.exp(price) * sizes).argmin(1)
            low, high = (price, high) if losses[every, picks].sum() < total else (low, price)
        yield setting(f"mixed for {total:g} nats", picks)
    four = next(f for f in profile.kv.k_formats if f.bits == 4)
    for name, span in (("all at 4 bits", Full()), ("a quarter of the context at 4 bits", Window(context // 4))):
        nearest = min(spans, key=lambda s: _far(s, span, context))
        pick = choices.index(KvChoice(nearest, four, four, profile.kv.sinks, HERE))
        yield setting(name, np.full(len(every), pick))
    chance = random.Random(seed)
    for most in (0.002, 0.01):
        allowed = [np.flatnonzero(row <= most) for row in losses]
        yield setting(
            f"random below {most:g} nats a site", np.array([chance.choice(list(a)) for a in allowed], np.intp)
        )


def _far(span: Span, wanted: Span, context: int) -> int:
    def size(s: Span) -> int:
        return context if isinstance(s, Full) else s.tokens(context)

    return abs(size(span) - size(wanted))


def measure(
    profile: ModelProfile,
    spec: ModelSpec,
    executor: Executor,
    document: Sequence[int],
    chunk_tokens: int,
    parts: Parts,
    progress: Progress,
) -> ModelProfile:
    """The profile with its anchors: each setting run on a document that no price was measured on."""
    executor.use(profile.statics)
    workload = Workload((len(document),), new_tokens=1)
    weights: dict[Site, Choice] = {s: WeightChoice(WeightFormat(32), HERE) for s in spec.weight_sites}
    first, wanted = len(document) // 2, list(settings(profile, spec, profile.seed))

    def run(kv: dict[Site, Choice]) -> NDArray[np.float32]:
        return executor.open(trial("anchor", workload, {**kv, **weights})).score(document, first, chunk_tokens)

    dense: list[NDArray[np.float32]] = []

    def kl(setting: Setting) -> dict[str, NDArray[np.float64]]:
        if not dense:
            plain = KvChoice(Full(), FLOAT32, FLOAT32, profile.kv.sinks, HERE)
            dense.append(run(dict.fromkeys(spec.kv_sites, plain)))
        score = compare(dense[0], run(setting.kv), document[first + 1 :])
        return {"nats": np.array([setting.predicted_nats, score.loss_nats])}

    anchors = []
    for number, setting in enumerate(wanted):
        progress("anchors", number, len(wanted))
        predicted, measured = parts.get(f"anchor-{number}", partial(kl, setting))["nats"]
        anchors.append(Anchor(setting.name, len(document), float(predicted), float(measured)))
    progress("anchors", len(wanted), len(wanted))
    return replace(profile, anchors=tuple(anchors), documents=(*profile.documents, document_sha256(document)))
