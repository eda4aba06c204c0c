"""Measure a model once: static factors of the KV codes, attention mass, and the price of every option in nats.

The work is kept document by document in a directory, so that a killed run goes on where it stopped.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from planner.executor import Executor, KvStatics, Progress
from planner.formats import coded_alike
from planner.profile import KvPrices, ModelProfile, WeightPrices
from planner.space import FLOAT16, KvFormat, KvSite, WeightFormat
from planner.spec import LayerSpec, ModelSpec, TensorSpec
from profiles import fisher
from profiles.parts import Parts
from profiles.streamed import Attended, Part, forward, part_of, passed_back, unseen
from profiles.weights import CheckpointWeights

RECODED_INPUTS = 64
"""Inputs of a row with which it is asked whether a format rounds them: any whole number of blocks would do."""

WINDOWS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Windows of coded tokens that are priced, as far as they are shorter than the context."""

DRAWS_TOKENS = 2048
"""The length of document that is given `Calibration.draws` draws; shorter ones get more, up to four times as many."""

SITES_A_THREAD = 4
"""KV heads that are waited for before they are priced side by side."""

MEASURING = ("model.py", "fisher.py", "streamed.py", "anchors.py", "weight_anchors.py")
"""The files whose code decides what is measured."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The documents to measure on: token sequences by context length; weights are priced on short ones."""

    documents: tuple[tuple[int, ...], ...]
    weight_documents: tuple[tuple[int, ...], ...]
    draws: int
    seed: int
    sinks: int

    def draws_for(self, tokens: int) -> int:
        """Draws on a document of so many tokens: a short one has fewer blocks to average over and costs less.

        >>> asked = Calibration((), (), draws=4, seed=0, sinks=4)
        >>> asked.draws_for(8192), asked.draws_for(2048), asked.draws_for(512)
        (4, 4, 16)
        """
        return self.draws * min(max(DRAWS_TOKENS // tokens, 1), 4)

    @property
    def sha256(self) -> tuple[str, ...]:
        return tuple(document_sha256(d) for d in (*self.documents, *self.weight_documents))


def document_sha256(tokens: Sequence[int]) -> str:
    """Identity of a token sequence."""
    return hashlib.sha256(np.asarray(tokens, np.int64).tobytes()).hexdigest()


def code_sha256() -> str:
    """Identity of the code that measures: prices that another version measured are not read back."""
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / name).read_bytes() for name in MEASURING)).hexdigest()


@dataclass
class Profiler:
    """One model being measured under one runtime's formats."""

    weights: CheckpointWeights
    spec: ModelSpec
    executor: Executor
    calibration: Calibration
    parts: Parts
    progress: Progress

    @property
    def model(self) -> PreTrainedModel:
        return self.weights.model

    @property
    def kv_formats(self) -> tuple[KvFormat, ...]:
        """Every code the runtime has, after the floats that stand for none."""
        return FLOAT16, *(f for f in self.executor.capabilities.kv_formats if f.scheme != "float")

    @property
    def weight_formats(self) -> tuple[WeightFormat, ...]:
        """Every format that changes something: what rounds a matrix, and what rounds the inputs of its products."""
        can = self.executor.capabilities
        kept = dict.fromkeys(filter(None, map(can.as_source, self.spec.tensors))) if can.native == "exact" else ()
        return tuple(f for f in (*can.weight_formats, *kept) if f != WeightFormat(32))

    @property
    def contexts(self) -> tuple[int, ...]:
        return tuple(sorted({len(d) for d in self.calibration.documents}))

    @property
    def windows(self) -> tuple[int, ...]:
        return tuple(w for w in WINDOWS if w + self.calibration.sinks < max(self.contexts))

    def run(self) -> ModelProfile:
        """The profile without anchors."""
        statics = self._statics()
        contexts = self.contexts
        kv_shape = (len(self.spec.kv_sites), len(self.windows) + 1, len(self.kv_formats), len(self.kv_formats))
        losses: dict[int, list[NDArray[np.float64]]] = {context: [] for context in contexts}
        mass = np.zeros((len(self.spec.kv_sites), len(self.windows) + 1, len(contexts)))
        for number, document in enumerate(self.calibration.documents):
            part = self.parts.get(f"kv-{number}", partial(self._price_kv, document, number, statics))
            products = fisher.KvProducts(torch.from_numpy(part["by_key"]), torch.from_numpy(part["by_value"]))
            losses[len(document)].append(products.losses(len(document) // 2).transpose(0, 1).numpy())
            same = sum(len(d) == len(document) for d in self.calibration.documents)
            mass[..., contexts.index(len(document))] += part["mass"] / same
        loss, error = np.zeros((*kv_shape, len(contexts))), np.zeros((*kv_shape, len(contexts)))
        for i, context in enumerate(contexts):
            loss[..., i], error[..., i] = mean_and_error(np.concatenate(losses[context]))
        return ModelProfile(
            weights_sha256=self.spec.weights_sha256,
            formats_sha256=self.executor.identity(),
            context_tokens=contexts,
            draws=self.calibration.draws,
            seed=self.calibration.seed,
            kv=KvPrices(
                self.spec.kv_sites, self.windows, self.kv_formats, self.kv_formats, self.calibration.sinks, loss, error
            ),
            weights=self._price_weights(),
            mass=mass,
            statics=statics,
            documents=self.calibration.sha256,
        )

    # --- static factors -------------------------------------------------------------------------

    def _statics(self) -> dict[KvSite, KvStatics]:
        part = self.parts.get("statics", self._measure_statics)
        return {
            site: KvStatics(*(part[name][i] for name in ("k_mean", "k_scale", "v_scale", "k_peak", "v_peak")))
            for i, site in enumerate(self.spec.kv_sites)
        }

    @torch.no_grad()
    def _measure_statics(self) -> dict[str, NDArray[np.float32]]:
        """Mean of the keys, balancing factors and peaks by channel, over all calibration documents.

        A rotated code spreads its error evenly, so a channel is scaled up as the queries weigh it (root mean square
        q) and down as the keys spend range on it (standard deviation k): the error of q.k is least at
        sqrt(rms q / std k). Values are scaled by 1 / sqrt(std v) for the same reason, all outputs weighing alike.
        """
        sums: dict[str, list[list[Tensor]]] = {name: [[] for _ in self.spec.kv_sites] for name in ("q", "k", "v")}
        documents = self.calibration.documents
        peaks: dict[str, list[list[Tensor]]] = {name: [[] for _ in self.spec.kv_sites] for name in ("k", "v")}

        def add(attended: Attended) -> None:
            """What one layer's attention saw."""
            group = self.spec.layers[attended.layer].group
            for i, site in enumerate(self.spec.kv_sites):
                if site.layer != attended.layer:
                    continue
                queries = attended.q[site.kv_head * group : (site.kv_head + 1) * group]
                for name, x in (
                    ("q", queries.flatten(0, 1)),
                    ("k", attended.k[site.kv_head, self.calibration.sinks :]),
                    ("v", attended.v[site.kv_head, self.calibration.sinks :]),
                ):
                    sums[name][i].append(torch.stack([torch.ones(x.shape[1]) * len(x), x.sum(0), x.square().sum(0)]))
                peaks["k"][i].append(attended.k[site.kv_head].abs().amax(0))
                peaks["v"][i].append(attended.v[site.kv_head].abs().amax(0))

        for number, document in enumerate(documents):
            self.progress("static factors", number, len(documents))
            forward(self.model, document, 1, add)
        self.progress("static factors", len(documents), len(documents))
        out: dict[str, list[NDArray[np.float32]]] = {
            f"{part}_peak": [torch.stack(found).amax(0).numpy() for found in peaks[part]] for part in ("k", "v")
        }
        out |= {"k_mean": [], "k_scale": [], "v_scale": []}
        for i in range(len(self.spec.kv_sites)):
            (nq, _, q2), (nk, k1, k2), (nv, v1, v2) = (torch.stack(sums[x][i]).double().sum(0) for x in "qkv")
            k_std = (k2 / nk - (k1 / nk) ** 2).clamp_min(0).sqrt()
            v_std = (v2 / nv - (v1 / nv) ** 2).clamp_min(0).sqrt()
            out["k_mean"].append((k1 / nk).float().numpy())
            out["k_scale"].append(_balanced((q2 / nq).sqrt() / _floored(k_std)))
            out["v_scale"].append(_balanced(1 / _floored(v_std)))
        return {name: np.stack(values) for name, values in out.items()}

    def _sites(self) -> Iterator[tuple[KvSite, LayerSpec]]:
        return ((site, self.spec.layers[site.layer]) for site in self.spec.kv_sites)

    # --- keys, values and spans -----------------------------------------------------------------

    def _price_kv(
        self, document: Sequence[int], number: int, statics: Mapping[KvSite, KvStatics]
    ) -> dict[str, NDArray[np.float64]]:
        """What fisher.KvProducts holds for all sites on a document, and attention mass [kv_sites, windows + full]."""
        calibration, stage = self.calibration, f"document {number + 1} of {len(self.calibration.documents)}"
        scored, draws = len(document) // 2, calibration.draws_for(len(document))
        self.progress(stage, 0, len(self.spec.layers))
        seen: dict[int, Attended] = {}
        gradients: dict[int, list[Tensor]] = {}
        priced: dict[KvSite, tuple[fisher.KvProducts, Tensor]] = {}

        def see(attended: Attended) -> None:
            seen[attended.layer] = attended

        def wanted(part: Part) -> list[Tensor]:
            if not isinstance(part, int):
                return []
            out, gradients[part] = seen[part].out, []
            seen[part] = replace(seen[part], out=out.detach())  # or its graph would stay
            return [out]

        def price(site: KvSite) -> tuple[fisher.KvProducts, Tensor]:
            layer, attended = self.spec.layers[site.layer], seen[site.layer]
            heads = slice(site.kv_head * layer.group, (site.kv_head + 1) * layer.group)
            q, k, v = attended.q[heads], attended.k[site.kv_head], attended.v[site.kv_head]
            gradient = torch.stack([g[heads] for g in gradients[site.layer]])
            with torch.inference_mode():
                options = self._options(k, v, statics[site], layer.window)
                found = fisher.option_products(q, k, v, gradient, attended.scale, options)
                mass = fisher.recent_mass(q, k, attended.scale, options)
            return found, mass

        passed = passed_back(self.model, document, scored, draws, calibration.seed + number, wanted, see)
        for part, draw, found in passed:
            if not isinstance(part, int):
                continue
            gradients[part].append(found[0][0])
            sites = [site for site in self.spec.kv_sites if site.layer in seen]
            if draw == draws - 1 and (part == 0 or len(sites) >= SITES_A_THREAD * torch.get_num_threads()):
                with one_thread_each() as pool:
                    priced |= zip(sites, pool.map(price, sites), strict=True)
                seen.clear()
                gradients.clear()
                self.progress(stage, len(self.spec.layers) - part, len(self.spec.layers))
        found_at = [priced[site] for site in self.spec.kv_sites]
        return {
            "by_key": np.stack([products.by_key.numpy() for products, _ in found_at]),
            "by_value": np.stack([products.by_value.numpy() for products, _ in found_at]),
            "mass": np.stack([mass.numpy() for _, mass in found_at]),
        }

    def _options(self, k: Tensor, v: Tensor, statics: KvStatics, reach: int | None) -> fisher.Options:
        sinks = self.calibration.sinks if reach is None else 0

        def read(part: Literal["k", "v"], x: Tensor) -> tuple[Tensor, ...]:
            found = []
            for form in self.kv_formats:
                back = torch.from_numpy(self.executor.recode_kv(part, form, x.numpy(), statics)).clone()
                if not coded_alike(form):
                    back[:sinks] = x[:sinks].half().float()
                found.append(back)
            return tuple(found)

        return fisher.Options((*self.windows, None), read("k", k), read("v", v), sinks, reach)

    # --- weights --------------------------------------------------------------------------------

    def _price_weights(self) -> WeightPrices:
        documents = self.calibration.weight_documents
        shape = (len(self.spec.tensors), len(self.weight_formats))
        found = []
        for number, document in enumerate(documents):
            part = self.parts.get(f"weights-{number}", partial(self._price_weights_on, document, number))
            found.append(part["squares"])
        loss, error = mean_and_error(np.concatenate(found)) if found else (np.full(shape, np.nan),) * 2
        return WeightPrices(self.spec.weight_sites, self.weight_formats, loss, error)

    def _price_weights_on(self, document: Sequence[int], number: int) -> dict[str, NDArray[np.float64]]:
        """Squares c^2 / (2 * scored) of one document: [draws, weight_sites, formats]."""
        names, layer_of = dict(self.model.named_parameters()), part_of(self.model)
        parameters = [names[tensor.name] for tensor in self.spec.tensors]
        numbers = {tensor.name: i for i, tensor in enumerate(self.spec.tensors)}
        inside: dict[Part, list[int]] = {i: [] for i in range(len(self.spec.layers))}
        outside = [i for name, i in numbers.items() if name not in layer_of]
        for name, i in numbers.items():
            if name in layer_of:
                inside[layer_of[name]].append(i)
        scored, draws = len(document) // 2, self.calibration.draws_for(len(document))
        products = np.zeros((draws, len(parameters), len(self.weight_formats)))
        # What belongs to no layer, a tied matrix above all, is asked of in the head and in the embedding. Its changes
        # are held from one to the other, in 16 bits: it may be the largest matrix there is.
        shared = {i: self._weight_changes(self.spec.tensors[i], torch.float16) for i in outside}
        changes = shared
        rounded: dict[Part, list[fisher.Rounded]] = {}
        steps = len(self.spec.layers) + 1
        self.progress("weight prices", 0, steps)

        def wanted(part: Part) -> list[Tensor]:
            nonlocal changes
            own = {i: self._weight_changes(self.spec.tensors[i], torch.float32) for i in inside.get(part, ())}
            changes = shared | own
            rounded[part] = list(seen)
            seen.clear()
            return [*(parameters[i] for i in inside.get(part, outside)), *(each.output for each in rounded[part])]

        for parameter in parameters:
            parameter.requires_grad_(True)
        try:
            with fisher.watched(self._linears(), self._inputs_read) as seen:
                seed = self.calibration.seed - number
                for part, draw, found in passed_back(self.model, document, scored, draws, seed, wanted, unseen):
                    asked = inside.get(part, outside)
                    for i, gradient in zip(asked, found, strict=False):
                        products[draw, i] += fisher.products(gradient, changes[i], unchanged=np.nan)
                    for each, gradient in zip(rounded[part], found[len(asked) :], strict=True):
                        products[draw, numbers[each.name]] += fisher.products(gradient, each.changes, unchanged=0.0)
                    if draw == draws - 1 and isinstance(part, int):
                        del rounded[part]
                        self.progress("weight prices", len(self.spec.layers) - part, steps)
        finally:
            self.model.requires_grad_(False)
        self.progress("weight prices", steps, steps)
        return {"squares": np.square(products) / (2 * scored)}

    def _linears(self) -> dict[str, torch.nn.Module]:
        """The linear layers whose inputs some format rounds, by the name of their matrix; a tied head is the
        embedding's."""
        if all(read is None for read in self._inputs_read(torch.zeros(1, RECODED_INPUTS))):
            return {}
        decided = {tensor.name for tensor in self.spec.tensors}
        found: dict[str, torch.nn.Module] = {
            name: module
            for path, module in self.model.named_modules()
            if isinstance(module, torch.nn.Linear) and (name := f"{path}.weight") in decided
        }
        head = self.model.get_output_embeddings()
        embedding = self.model.get_input_embeddings()
        if head is not None and head.weight is embedding.weight:
            name = next(n for n, p in self.model.named_parameters() if p is head.weight)
            found[name] = head
        return found

    def _inputs_read(self, x: Tensor) -> list[Tensor | None]:
        """Inputs [tokens, inputs] of a product as each format reads them, None where as they are."""
        values = x.numpy()
        read = [self.executor.recode_input(form, values) for form in self.weight_formats]
        return [None if each is None else torch.from_numpy(each) for each in read]

    def _weight_changes(self, tensor: TensorSpec, held_as: torch.dtype) -> list[Tensor | None]:
        """What each format changes in a matrix, in the parameter's own layout; None where it cannot."""
        changes: list[Tensor | None] = []
        dense = torch.from_numpy(self.weights.dense(tensor.name))
        for form in self.weight_formats:
            if form.as_source:
                fits = form == self.executor.capabilities.as_source(tensor)
                changes.append(torch.empty(0) if fits else None)
                continue
            if not self.executor.capabilities.fits(tensor, form):
                changes.append(None)
                continue
            change = torch.from_numpy(self.executor.recode_weight(tensor.name, form)) - dense
            changes.append((change.T if self.weights.transposed(tensor.name) else change).to(held_as))
        return changes


@contextmanager
def one_thread_each() -> Iterator[ThreadPoolExecutor]:
    """As many workers as torch has threads, each computing on one: many small matrices run in parallel best so."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool
    finally:
        torch.set_num_threads(threads)


def mean_and_error(squares: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean over draws (the first axis) and its standard error.

    >>> mean, error = mean_and_error(np.array([1.0, 3.0]))
    >>> float(mean), float(error)
    (2.0, 1.0)

    A single draw shows no spread; the square of a normal number has one of sqrt(2) times its mean.

    >>> [round(float(x), 3) for x in mean_and_error(np.array([1.0]))]
    [1.0, 1.414]
    """
    if len(squares) == 1:
        return squares[0], squares[0] * np.sqrt(2)
    return squares.mean(0), squares.std(0, ddof=1) / np.sqrt(len(squares))


def _floored(std: Tensor) -> Tensor:
    """Standard deviations no smaller than a thousandth of the largest, so that a dead channel is not blown up."""
    return std.clamp_min(max(float(std.max()) * 1e-3, 1e-12))


def _balanced(ratio: Tensor) -> NDArray[np.float32]:
    """Square roots, scaled to a geometric mean of 1 so that float16 holds them."""
    root = ratio.clamp_min(1e-12).sqrt()
    scaled: NDArray[np.float32] = (root / root.log().mean().exp()).clamp(1e-3, 1e3).float().numpy()
    return scaled
