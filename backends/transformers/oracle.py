"""What a plan gives in another runtime's numbers: any backend's codes, run by transformers in float32.

Weights are what the backend's `recode_weight` reads back, inputs of products what its `recode_input` does, keys and
values what `recode_kv` does as they are cached; windows and protected tokens are as the plan says, physically. So
settings are priced that a runtime cannot run, or cannot run here, and those that run here have something to be compared
with. Bytes and seconds would be those of no runtime at all, so there are none.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from backends.artefacts import refusals
from backends.transformers import layout, runner
from backends.transformers.executor import TransformersSession
from planner.errors import InputError
from planner.executor import KvStatics, Timing, Weights
from planner.plan import Plan
from planner.space import FLOAT32, KvChoice, KvFormat, KvSite, WeightFormat
from planner.spec import ModelSpec

Floats = NDArray[np.float32]


class Codes(Protocol):
    """What defines a backend's numbers, as every Executor has it."""

    def recode_kv(self, part: Literal["k", "v"], form: KvFormat, values: Floats, statics: KvStatics) -> Floats: ...

    def recode_weight(self, name: str, form: WeightFormat) -> Floats: ...

    def recode_input(self, form: WeightFormat, values: Floats) -> Floats | None: ...


@dataclass
class Recoded(runner.Code):
    """Keys, or values, of some heads kept as the float32 numbers that one format reads back as.

    `read` is [heads] functions of vectors [tokens, head_dim].
    """

    form: KvFormat = FLOAT32
    read: Sequence[Callable[[Floats], Floats]] = ()

    def encode(self, x: Tensor) -> tuple[Tensor, ...]:
        """Vectors [batch, heads, tokens, head_dim] as they read back."""
        if self.form.scheme == "float":
            return (self._rounded(x),)
        back = torch.empty_like(x)
        for head, read in enumerate(self.read):
            own = x[:, head]
            back[:, head] = torch.from_numpy(read(own.reshape(-1, self.head_dim).numpy())).view(own.shape)
        return (back,)

    def floats(self, x: Tensor) -> Tensor:
        """Protected tokens, which only a `static` format codes (planner.formats)."""
        return self.encode(x)[0] if self.form.scheme == "static" else self._rounded(x)

    def _rounded(self, x: Tensor) -> Tensor:
        limit = runner.FLOAT16_MAX
        return x if self.form == FLOAT32 else x.clamp(-limit, limit).half().float()


class RecodedLinear(nn.Module):
    """A product whose inputs a backend rounds before it multiplies."""

    def __init__(self, linear: nn.Linear, read: Callable[[Floats], Floats | None]) -> None:
        super().__init__()
        self.weight, self.bias, self.read = linear.weight, linear.bias, read

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(-1, x.shape[-1])
        read = self.read(rows.numpy())
        out = functional.linear(rows if read is None else torch.from_numpy(read), self.weight, self.bias)
        return out.view(*x.shape[:-1], -1)


class OracleModel(runner.PlannedModel):
    """The runner's model with a backend's numbers in its cache."""

    def __init__(self, model: PreTrainedModel, kinds: list[list[tuple[runner.HeadClass, Recoded, Recoded]]]) -> None:
        self.model = model
        self.kinds = [[*layer] for layer in kinds]


@dataclass
class OracleSession(TransformersSession):
    """A plan in a backend's numbers: scored and continued, never timed."""

    def time(self, prompt: Sequence[int], new_tokens: int, chunk_tokens: int, batch: int = 1) -> Timing:
        raise InputError("this plan was run in another runtime's numbers, by transformers: there is nothing to time")


@dataclass
class Oracle:
    """One model in the numbers of a backend.

    Weights of the last opened plan stay built, so plans that differ only in their cache open at once.
    """

    codes: Codes
    weights: Weights
    spec: ModelSpec
    _built: tuple[object, PreTrainedModel] | None = field(default=None, init=False)

    def open(self, plan: Plan, statics: Mapping[KvSite, KvStatics]) -> OracleSession:
        """A session of a plan, under these static factors."""
        formats = {site.tensor: choice.format for site, choice in plan.weights}
        key = tuple(formats.items())
        if self._built is None or self._built[0] != key:
            self._built = None  # frees the old weights before the new ones are built
            self._built = (key, self._build(formats))
        kinds = [list(self._kinds(layer, plan, statics)) for layer in range(len(self.spec.layers))]
        return OracleSession(OracleModel(self._built[1], kinds))

    def _build(self, formats: Mapping[str, WeightFormat]) -> PreTrainedModel:
        tensors: dict[str, Tensor] = {}
        for name in self.weights.names():
            form = formats.get(name)
            matrix = torch.from_numpy(
                self.weights.dense(name) if form is None else self.codes.recode_weight(name, form)
            ).float()
            tensors[name] = (matrix.T if self.weights.transposed(name) else matrix).contiguous()
        with refusals(runner.ArtefactError):
            model = runner.build(json.loads(self.weights.config), {}, tensors)
        tied = {id(parameter): name for name, parameter in model.named_parameters()}
        for path, module in list(model.named_modules()):
            if isinstance(module, nn.Linear) and (form := formats.get(tied[id(module.weight)])) is not None:
                parent, _, leaf = path.rpartition(".")
                linear = RecodedLinear(module, partial(self.codes.recode_input, form))
                setattr(model.get_submodule(parent), leaf, linear)
        return model

    def _kinds(
        self, index: int, plan: Plan, statics: Mapping[KvSite, KvStatics]
    ) -> Iterator[tuple[runner.HeadClass, Recoded, Recoded]]:
        """The head classes of a layer, each with how it keeps keys and values."""
        layer, chosen = self.spec.layers[index], dict(plan.kv)
        classes: dict[KvChoice, list[int]] = {}
        for head in range(layer.kv_heads):
            classes.setdefault(chosen[KvSite(index, head)], []).append(head)
        for choice, heads in classes.items():
            entry = layout.head_class(choice, heads, layer.window)
            entry["k_bits"] = entry["v_bits"] = 32
            held = runner.HeadClass(**entry)
            sites = [KvSite(index, head) for head in heads]
            yield held, self._code("k", choice.k, sites, statics), self._code("v", choice.v, sites, statics)

    def _code(
        self, part: Literal["k", "v"], form: KvFormat, sites: Sequence[KvSite], statics: Mapping[KvSite, KvStatics]
    ) -> Recoded:
        dim = self.spec.layers[sites[0].layer].head_dim
        zero, one = np.zeros(dim, np.float32), np.ones(dim, np.float32)
        neutral = KvStatics(zero, one, one, one, one)
        read = [partial(self._read, part=part, form=form, statics=statics.get(site, neutral)) for site in sites]
        plain = torch.zeros(len(sites), 1, dim)
        return Recoded(32, dim, plain, plain + 1, form, read)

    def _read(self, values: Floats, part: Literal["k", "v"], form: KvFormat, statics: KvStatics) -> Floats:
        return self.codes.recode_kv(part, form, values, statics)
