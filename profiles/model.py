"""Measure a model once: static factors of the KV codes, attention mass, and the price of every option in nats.

The work is kept document by document in a directory, so that a killed run goes on where it stopped.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from planner.executor import KvStatics
from planner.formats import coded_alike
from planner.profile import KvPrices, ModelProfile
from planner.space import FLOAT16, KvFormat, KvSite
from profiles import fisher
from profiles.measurement import Measurement
from profiles.streamed import Attended, Part, forward, passed_back
from profiles.weight_prices import WeightPricer
from profiles.workers import one_thread_each

WINDOWS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
"""Windows of coded tokens that are priced, as far as they are shorter than the context."""

SITES_A_THREAD = 4
"""KV heads that are waited for before they are priced side by side."""

MEASURING = (
    "model.py",
    "calibration.py",
    "fisher.py",
    "streamed.py",
    "products.py",
    "weight_prices.py",
    "anchors.py",
    "weight_anchors.py",
)
"""The files whose code decides what is measured."""


def code_sha256() -> str:
    """Identity of the code that measures: prices that another version measured are not read back."""
    here = Path(__file__).parent
    return hashlib.sha256(b"".join((here / name).read_bytes() for name in MEASURING)).hexdigest()


class Profiler(Measurement):
    """The prices of every option of a model under one runtime's formats."""

    @property
    def kv_formats(self) -> tuple[KvFormat, ...]:
        """Every code the runtime has, after the floats that stand for none."""
        return FLOAT16, *(f for f in self.executor.capabilities.kv_formats if f.scheme != "float")

    @property
    def contexts(self) -> tuple[int, ...]:
        return tuple(sorted({len(d) for d in self.calibration.documents}))

    @property
    def windows(self) -> tuple[int, ...]:
        return tuple(w for w in WINDOWS if w + self.calibration.sinks < max(self.contexts))

    def run(self) -> ModelProfile:
        """The profile without anchors."""
        weights = WeightPricer(self.weights, self.spec, self.executor, self.calibration, self.parts, self.progress)
        statics = self._statics()
        contexts = self.contexts
        kv_shape = (len(self.spec.kv_sites), len(self.windows) + 1, len(self.kv_formats), len(self.kv_formats))
        squares: dict[int, list[fisher.Squares]] = {context: [] for context in contexts}
        mass = np.zeros((len(self.spec.kv_sites), len(self.windows) + 1, len(contexts)))
        for number, document in enumerate(self.calibration.documents):
            part = self.parts.get(f"kv-{number}", partial(self._price_kv, document, number, statics))
            found = fisher.KvProducts(torch.from_numpy(part["by_key"]), torch.from_numpy(part["by_value"]))
            squares[len(document)].append(found.squares())
            same = sum(len(d) == len(document) for d in self.calibration.documents)
            mass[..., contexts.index(len(document))] += part["mass"] / same
        loss, error = np.zeros((*kv_shape, len(contexts))), np.zeros((*kv_shape, len(contexts)))
        for i, context in enumerate(contexts):
            by_draw = fisher.losses(squares[context], context // 2).transpose(0, 1)
            loss[..., i], error[..., i] = fisher.mean_and_error(by_draw.numpy())
        return ModelProfile(
            weights_sha256=self.spec.weights_sha256,
            formats_sha256=self.executor.identity(),
            context_tokens=contexts,
            draws=self.calibration.draws,
            seed=self.calibration.seed,
            kv=KvPrices(
                self.spec.kv_sites, self.windows, self.kv_formats, self.kv_formats, self.calibration.sinks, loss, error
            ),
            weights=weights.prices(),
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
                queries = attended.q[0, site.kv_head * group : (site.kv_head + 1) * group]
                for name, x in (
                    ("q", queries.flatten(0, 1)),
                    ("k", attended.k[0, site.kv_head, self.calibration.sinks :]),
                    ("v", attended.v[0, site.kv_head, self.calibration.sinks :]),
                ):
                    sums[name][i].append(torch.stack([torch.ones(x.shape[1]) * len(x), x.sum(0), x.square().sum(0)]))
                peaks["k"][i].append(attended.k[0, site.kv_head].abs().amax(0))
                peaks["v"][i].append(attended.v[0, site.kv_head].abs().amax(0))

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

    # --- keys, values and spans -----------------------------------------------------------------

    def _price_kv(
        self, document: Sequence[int], number: int, statics: Mapping[KvSite, KvStatics]
    ) -> dict[str, NDArray[np.floating]]:
        """What fisher.KvProducts holds for all sites on a document, and attention mass [kv_sites, windows + full]."""
        calibration, stage = self.calibration, f"document {number + 1} of {len(self.calibration.documents)}"
        scored, draws = len(document) // 2, calibration.draws
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
            q, k, v = attended.q[0, heads], attended.k[0, site.kv_head], attended.v[0, site.kv_head]
            gradient = torch.stack([g[heads] for g in gradients[site.layer]])
            with torch.inference_mode():
                options = self._options(k, v, statics[site], layer.window)
                return fisher.option_products(q, k, v, gradient, attended.scale, options, scored)

        passed = passed_back(self.model, [document], scored, draws, calibration.seed + number, wanted, see)
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
                # What 16-bit floats lose is too little to take time for.
                same = torch.equal(back, x.half().float()) and bool(torch.isfinite(back).all())
                found.append(x if same else back)
            return tuple(found)

        return fisher.Options((*self.windows, None), read("k", k), read("v", v), sinks, reach)


def _floored(std: Tensor) -> Tensor:
    """Standard deviations no smaller than a thousandth of the largest, so that a dead channel is not blown up."""
    return std.clamp_min(max(float(std.max()) * 1e-3, 1e-12))


def _balanced(ratio: Tensor) -> NDArray[np.float32]:
    """Square roots, scaled to a geometric mean of 1 so that float16 holds them."""
    root = ratio.clamp_min(1e-12).sqrt()
    scaled: NDArray[np.float32] = (root / root.log().mean().exp()).clamp(1e-3, 1e3).float().numpy()
    return scaled
