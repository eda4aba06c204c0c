"""Whole settings really measured, to learn by how much the sum of prices is off.

Two uniform settings, two random mixtures, and mixtures as a solver would make them: at each site the choice with the
least loss + price of a byte * bytes, the price set so that the losses sum to a wanted total.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import median

import numpy as np
from numpy.typing import NDArray

from planner.executor import Capabilities, Executor, Progress, Session
from planner.formats import head_bytes
from planner.goal import Workload
from planner.plan import trial
from planner.profile import Anchor, ModelProfile
from planner.quality import compare
from planner.space import FLOAT16, FLOAT32, Choice, Full, KvChoice, Site, Span, Tier, WeightChoice, WeightFormat, Window
from planner.spec import ModelSpec
from planner.verify import on_disk
from profiles import weight_anchors
from profiles.calibration import document_sha256
from profiles.parts import Parts

TOTALS_NATS = (0.01, 0.03, 0.1, 0.3)

HERE: Tier = (("dram", 1.0),)


@dataclass(frozen=True)
class Setting:
    """A whole setting and what its prices sum to; `by_price` where prices made it what it is."""

    name: str
    chosen: dict[Site, Choice]
    predicted_nats: float
    by_price: bool = False


def settings(profile: ModelProfile, spec: ModelSpec, can: Capabilities, seed: int) -> Iterator[Setting]:
    """The settings to measure, all weights dense but in the last; losses at the profile's longest context."""
    spans: tuple[Span, ...] = (*(Window(w) for w in profile.kv.windows), Full())
    # Where the runtime has no 16-bit floats, those of 32 bits stand for the same: nothing is rounded.
    plain = FLOAT16 if FLOAT16 in can.kv_formats else FLOAT32
    ks, vs = ([plain if f == FLOAT16 else f for f in forms] for forms in (profile.kv.k_formats, profile.kv.v_formats))
    every_choice = [KvChoice(span, k, v, profile.kv.sinks, HERE) for span in spans for k in ks for v in vs]
    carried = [i for i, choice in enumerate(every_choice) if can.carries(choice)]
    choices = [every_choice[i] for i in carried]
    losses = profile.kv.loss[..., -1].reshape(len(profile.kv.sites), -1)[:, carried]
    weights: dict[Site, Choice] = {s: WeightChoice(WeightFormat(32), HERE) for s in spec.weight_sites}
    context = max(profile.context_tokens)
    sizes = np.array([[head_bytes(c, spec.layers[s.layer], context) for c in choices] for s in profile.kv.sites])
    every = np.arange(len(profile.kv.sites))

    def setting(name: str, picks: NDArray[np.intp], by_price: bool = False) -> Setting:
        kv: dict[Site, Choice] = {site: choices[i] for site, i in zip(profile.kv.sites, picks, strict=True)}
        return Setting(name, {**kv, **weights}, float(losses[every, picks].sum()), by_price)

    if can.kv_one == "model":
        whole_cache = KvChoice(Full(), plain, plain, profile.kv.sinks, HERE)
        for told_of in weight_anchors.mixtures(profile, spec, can, TOTALS_NATS, whole_cache):
            yield Setting(*told_of, by_price=True)
        for told_of in weight_anchors.caches(profile, can, HERE, weights):
            yield Setting(*told_of)
        return
    for total in TOTALS_NATS:
        low, high = -40.0, 10.0  # logarithm of the price of a byte in nats
        for _ in range(60):
            price = (low + high) / 2
            picks = (losses + np.exp(price) * sizes).argmin(1)
            low, high = (price, high) if losses[every, picks].sum() < total else (low, price)
        yield setting(f"mixed for {total:g} nats", picks, by_price=True)
    # The weights as the source has them, where products round their inputs: with them a plan begins to lose.
    kept = {site: can.as_source(tensor) for site, tensor in zip(spec.weight_sites, spec.tensors, strict=True)}
    rounded = {site: form for site, form in kept.items() if form is not None and form in profile.weights.formats}
    if rounded:
        nats = sum(profile.weights.price(profile.weights.sites.index(site), form) for site, form in rounded.items())
        whole = dict[Site, Choice].fromkeys(profile.kv.sites, KvChoice(Full(), plain, plain, profile.kv.sinks, HERE))
        exact: dict[Site, Choice] = {site: WeightChoice(form, HERE) for site, form in rounded.items()}
        yield Setting("weights as the source has them", whole | weights | exact, nats)
    few = min((f for f in ks if f in vs), key=lambda f: abs(f.bits - 4))
    at_few = {c.span: i for i, c in enumerate(choices) if c.k == c.v == few}
    told: set[Span] = set()
    for name, span in (("all", Full()), ("a quarter of the context", Window(context // 4))):
        nearest = min(at_few, key=partial(_far, wanted=span, context=context))
        if nearest not in told:  # a runtime without windows has but the one
            told.add(nearest)
            yield setting(f"{name} at {few.bits:g} bits", np.full(len(every), at_few[nearest]))
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
    documents: Sequence[Sequence[int]],
    chunk_tokens: int,
    parts: Parts,
    progress: Progress,
) -> ModelProfile:
    """The profile with its anchors: settings run on documents of one length that no price was measured on.

    Those that prices made are run on all of them, the others on the first, and are scaled by what the former lose on
    all of them beside what they lose there: how much a document loses hangs more on it than on the setting.
    """
    executor.use(profile.statics)
    context = len(documents[0])
    workload, first = Workload((context,), new_tokens=1), context // 2
    wanted = list(settings(profile, spec, executor.capabilities, profile.seed))
    counts = [len(documents) if setting.by_price else 1 for setting in wanted]
    answers: dict[int, NDArray[np.float32]] = {}

    def opened(chosen: dict[Site, Choice]) -> Session:
        return executor.open(trial("anchor", workload, chosen))

    def dense(number: int) -> NDArray[np.float32]:
        """The dense model's answers to a document: on disk, for a large vocabulary makes them large."""
        if number not in answers:
            plain = KvChoice(Full(), FLOAT32, FLOAT32, profile.kv.sinks, HERE)
            weights: dict[Site, Choice] = {s: WeightChoice(WeightFormat(32), HERE) for s in spec.weight_sites}
            whole = opened({**dict.fromkeys(spec.kv_sites, plain), **weights})
            answers[number] = on_disk(whole.score(documents[number], first, chunk_tokens))
        return answers[number]

    def run(setting: Setting, count: int, done: int) -> dict[str, NDArray[np.float64]]:
        session, losses = opened(setting.chosen), []
        for number, document in enumerate(documents[:count]):
            progress("anchors", done + number, sum(counts))
            planned = session.score(document, first, chunk_tokens)
            losses.append(compare(dense(number), planned, document[first + 1 :]).loss_nats)
        return {"nats": np.array(losses)}

    found = []
    for n, (setting, count) in enumerate(zip(wanted, counts, strict=True)):
        found.append(parts.get(f"anchor-{n}", partial(run, setting, count, sum(counts[:n])))["nats"])
    progress("anchors", sum(counts), sum(counts))
    anchors = tuple(
        Anchor(setting.name, context, setting.predicted_nats, loss, setting.by_price)
        for setting, loss in zip(wanted, over_documents(found, len(documents)), strict=True)
    )
    return replace(
        profile, anchors=anchors, documents=(*profile.documents, *(document_sha256(document) for document in documents))
    )


def over_documents(losses: Sequence[Sequence[float] | NDArray[np.floating]], documents: int) -> list[float]:
    """Mean loss of each setting over so many documents, from its losses on all of them or on the first alone.

    What was run on the first alone is scaled as those that were run on all lose more or less there, in the median.

    >>> over_documents([[1.0, 3.0], [2.0, 6.0], [0.0, 1.0], [4.0]], 2)
    [2.0, 4.0, 0.5, 8.0]
    >>> over_documents([[4.0], [0.0]], 2), over_documents([[0.0], [1.0]], 1)
    ([4.0, 0.0], [0.0, 1.0])
    """
    everywhere = [each for each in losses if len(each) == documents and each[0] > 0]
    scale = median(float(np.mean(each)) / float(each[0]) for each in everywhere) if everywhere else 1.0
    return [float(np.mean(each)) * (1.0 if len(each) == documents else scale) for each in losses]
