"""What a plan means, said the slow way: a full cache of which each head is shown a part.

The plain transformers model runs over all tokens at once. Keys and values of every token are recoded one token at a
time and put back where they were, the protected sinks as floats; a mask hides what the plan does not keep. Nothing is
evicted, packed, rotated or chunked here, and which tokens are hidden is decided from the plan, not by the runner.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import AttentionInterface, AutoModelForCausalLM, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from backends.transformers.executor import TransformersExecutor
from backends.transformers.runner import Code, PlannedModel
from planner.executor import KvStatics
from planner.formats import slots
from planner.goal import Workload
from planner.plan import Plan, trial
from planner.space import Choice, Full, KvChoice, KvFormat, KvSite, Site, Span, Tier, WeightChoice, WeightFormat
from planner.spec import ModelSpec
from profiles.sources.huggingface import open_huggingface
from profiles.weights import CheckpointWeights

HERE: Tier = (("dram", 1.0),)
FULL32 = KvChoice(Full(), KvFormat(32), KvFormat(32), 4, HERE)
DENSE = WeightFormat(32)


def recoded(code: Code, x: Tensor) -> Tensor:
    """Vectors [heads, tokens, head_dim] as the code gives each of them back, in their own space."""
    if code.is_float:
        return code.decode(code.encode(x))
    tokens = [code.restored(code.decode(code.encode(x[None, :, i : i + 1])))[0] for i in range(x.shape[1])]
    return torch.cat(tokens, 1) + code.mean


def as_float(form: KvFormat, x: Tensor) -> Tensor:
    """Protected tokens as they are kept beside a format."""
    return x if form.bits == 32 else x.half().float()


def visible(tokens: int, sinks: int, window: int) -> Tensor:
    """Which keys each query sees, [tokens, tokens]: the sinks and the newest `window` others, never later ones."""
    now, at = torch.arange(tokens)[:, None], torch.arange(tokens)
    return (at <= now) & ((at < sinks) | (at > now - window))


def head_code(form: KvFormat, dim: int, mean: object, scale: object) -> Code:
    """The code of one head, its factors rounded as an artefact stores them."""
    factors = (torch.tensor(np.asarray(x)).half().float()[None, None] for x in (mean, scale))
    return Code(int(form.bits), dim, *factors)


@dataclass
class Oracle:
    """A plan at one context length, as the attention function below reads it."""

    plan: Plan
    spec: ModelSpec
    context_tokens: int
    statics: Mapping[KvSite, KvStatics]

    def seen(self, site: KvSite, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys and values [tokens, head_dim] of one head as its queries see them, and the mask."""
        choice, layer = dict(self.plan.kv)[site], self.spec.layers[site.layer]
        sinks, window = slots(choice, layer, self.context_tokens)
        zero, one = np.zeros(layer.head_dim, np.float32), np.ones(layer.head_dim, np.float32)
        static = self.statics.get(site, KvStatics(zero, one, one, one, one))
        keys = recoded(head_code(choice.k, layer.head_dim, static.k_mean, static.k_scale), k[None])[0]
        values = recoded(head_code(choice.v, layer.head_dim, zero, static.v_scale), v[None])[0]
        keys[:sinks], values[:sinks] = as_float(choice.k, k[:sinks]), as_float(choice.v, v[:sinks])
        return keys, values, visible(len(k), sinks, window)


def oracle_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    oracle: Oracle,
    **_: object,
) -> tuple[Tensor, None]:
    """Attention over everything, one query head at a time; query [1, q_heads, tokens, head_dim]."""
    layer, group = int(module.layer_idx), query.shape[1] // key.shape[1]
    out = torch.empty_like(query)
    for head in range(key.shape[1]):
        keys, values, mask = oracle.seen(KvSite(layer, head), key[0, head], value[0, head])
        for q in range(head * group, (head + 1) * group):
            scores = (query[0, q] @ keys.T * scaling).masked_fill(~mask, -torch.inf)
            out[0, q] = scores.softmax(-1) @ values
    return out.transpose(1, 2), None


AttentionInterface.register("oracle", oracle_attention)
AttentionMaskInterface.register("oracle", lambda *args, **kwargs: None)


@dataclass
class Subject:
    """A model directory opened three ways: for the runner, for the oracle, and plainly."""

    executor: TransformersExecutor
    spec: ModelSpec
    model: PreTrainedModel
    statics: dict[KvSite, KvStatics]

    def plan(self, kv: Callable[[KvSite], KvChoice], weights: Callable[[str], WeightFormat] = lambda _: DENSE) -> Plan:
        """A plan of these choices."""
        chosen: dict[Site, Choice] = {site: kv(site) for site in self.spec.kv_sites}
        chosen |= {site: WeightChoice(weights(site.tensor), HERE) for site in self.spec.weight_sites}
        return trial("test", Workload(), chosen)

    def open(self, plan: Plan) -> PlannedModel:
        """The physical runtime with a plan applied."""
        return self.executor.open(plan).model

    @torch.no_grad()
    def plainly(self, tokens: Sequence[int]) -> Tensor:
        """Logits [tokens, vocab] of the plain model."""
        self.model.set_attn_implementation("sdpa")
        logits: Tensor = self.model(torch.tensor([list(tokens)]), use_cache=False).logits[0]
        return logits

    @torch.no_grad()
    def truly(self, plan: Plan, tokens: Sequence[int], context_tokens: int) -> Tensor:
        """Logits [tokens, vocab] that a plan is to give."""
        self.model.set_attn_implementation("oracle")
        oracle = Oracle(plan, self.spec, context_tokens, self.statics)
        logits: Tensor = self.model(torch.tensor([list(tokens)]), use_cache=False, oracle=oracle).logits[0]
        return logits


def subject(path: Path) -> Subject:
    """A Hugging Face directory opened, with random static factors for its coded heads."""
    checkpoint = open_huggingface(path, path.name)
    weights = CheckpointWeights(checkpoint)
    chance = np.random.default_rng(0)

    def factors(dim: int) -> KvStatics:
        mean, k_log, v_log = chance.normal(0, 0.3, (3, dim)).astype(np.float32)
        return KvStatics(mean, np.exp(k_log), np.exp(v_log), 4 * np.exp(k_log), 4 * np.exp(v_log))

    statics = {site: factors(checkpoint.spec.layers[site.layer].head_dim) for site in checkpoint.spec.kv_sites}
    executor = TransformersExecutor(weights, checkpoint.spec, statics)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.requires_grad_(False)
    model.train(False)
    return Subject(executor, checkpoint.spec, model, statics)


def physically(model: PlannedModel, tokens: Sequence[int], context_tokens: int, chunk_tokens: int) -> Tensor:
    """Logits [tokens, vocab] of the runner, its prompt read in chunks."""
    cache = model.cache(1, context_tokens)
    ids = torch.tensor([list(tokens)])
    chunks = (ids[:, start : start + chunk_tokens] for start in range(0, len(tokens), chunk_tokens))
    return torch.cat([model.logits(model.step(cache, chunk)[0]) for chunk in chunks])


def tokens_of(count: int, vocabulary: int = 320, seed: int = 0) -> list[int]:
    """Random token ids, none of them special."""
    drawn = np.random.default_rng(seed).integers(2, vocabulary, count)
    return [int(token) for token in drawn]


def choice(span: Span, k: KvFormat, v: KvFormat | None = None, sinks: int = 4) -> KvChoice:
    """A cache of keys and values in one format, or in two."""
    return KvChoice(span, k, k if v is None else v, sinks, HERE)


def farthest(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference."""
    return float((a - b).abs().max())


def greedy(next_logits: Callable[[list[int]], Tensor], prompt: Iterable[int], new_tokens: int) -> list[int]:
    """Greedy tokens of a model that is asked for its next logits, all tokens anew each time."""
    tokens = list(prompt)
    start = len(tokens)
    for _ in range(new_tokens):
        tokens.append(int(next_logits(tokens).argmax()))
    return tokens[start:]
