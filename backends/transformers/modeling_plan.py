"""A planned model for transformers' own `generate`, its cache physically as the plan says.

    from modeling_plan import from_pretrained
    model = from_pretrained("out")
    model.generate(**tokenizer("...", return_tensors="pt"), max_new_tokens=64)

This file lies beside runner.py in an artefact directory, which must be on sys.path; it needs torch, transformers and
safetensors, nothing else. Batches may be padded on either side: a masked token never enters the cache.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache, GenerationConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from backends.transformers.runner import ArtefactError, PlannedCache, PlannedModel, load


class PlanCache(Cache):
    """The plan's cache of a batch of sequences, as `generate` takes it in `past_key_values`.

    It is made for a context, prompt and new tokens together: spans that grow with the context are that long. What is
    evicted is gone, so it cannot be cropped.
    """

    is_compileable = False
    is_croppable = False

    def __init__(self, model: PlannedModel, batch: int, context_tokens: int) -> None:
        super().__init__(layers=[])
        self.made_for = model, batch, context_tokens
        self.planned: PlannedCache = model.cache(batch, context_tokens)
        self.columns = 0

    @property
    def bytes(self) -> int:
        """Bytes of the tensors that hold it."""
        return self.planned.bytes

    @property
    def is_initialized(self) -> bool:
        return True

    @property
    def batch_size(self) -> int:
        return len(self.planned.seen)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """Columns of `input_ids` that were read, padding included."""
        return self.columns

    def get_max_length(self, layer_idx: int | None = None) -> int:
        return self.planned.context_tokens

    def reset(self) -> None:
        self.__init__(*self.made_for)  # type: ignore[misc]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Take over the caches of other rows (beam search)."""
        self.planned.seen = self.planned.seen[beam_idx]
        for kind in (kind for layer in self.planned.layers for kind in layer):
            kind.sink_k, kind.sink_v = kind.sink_k[beam_idx], kind.sink_v[beam_idx]
            kind.k, kind.v = (tuple(part[beam_idx] for part in stored) for stored in (kind.k, kind.v))

    def crop(self, tokens_to_remove: int) -> None:
        raise ArtefactError("a planned cache cannot be cropped: what its windows dropped is gone")


@dataclass
class DecoderOutput(BaseModelOutputWithPastAndCrossAttentions):
    """What a decoder gives, with the fields that any family's language model asks for."""

    router_logits: tuple[Tensor, ...] | None = None


class PlannedDecoder:
    """Mixed into a decoder of transformers: it reads and writes a PlanCache."""

    planned: PlannedModel

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Cache | None = None,
        planned_cache: PlannedCache | None = None,
        **options: Any,
    ) -> DecoderOutput:
        """The decoder's output for `input_ids` [batch, tokens]; `attention_mask` [batch, tokens so far and these]."""
        if planned_cache is not None:
            plain = cast(Any, super()).forward
            output: DecoderOutput = plain(input_ids=input_ids, planned_cache=planned_cache, **options)
            return output
        if input_ids is None:
            raise ArtefactError("a planned model reads input_ids; inputs_embeds were given")
        if past_key_values is None:
            past_key_values = PlanCache(self.planned, *input_ids.shape)
        if not isinstance(past_key_values, PlanCache):
            raise ArtefactError(f"past_key_values: found a {type(past_key_values).__name__}; give a PlanCache, or none")
        tokens = input_ids.shape[1]
        real = torch.ones_like(input_ids) if attention_mask is None else attention_mask[:, -tokens:]
        order = real.argsort(dim=-1, descending=True, stable=True)  # the runner wants each row's real tokens in front
        valid = torch.arange(tokens) < real.sum(-1, keepdim=True)
        hidden = self.planned.step(past_key_values.planned, input_ids.gather(1, order), valid)
        past_key_values.columns += tokens
        back = order.argsort(dim=-1)[..., None].expand_as(hidden)
        return DecoderOutput(last_hidden_state=hidden.gather(1, back), past_key_values=past_key_values)


class PlannedGeneration:
    """Mixed into a language model of transformers: `generate` makes the plan's cache."""

    planned: PlannedModel
    generation_config: GenerationConfig

    def plan_cache(self, batch: int, context_tokens: int) -> PlanCache:
        """An empty cache for sequences that together with what they generate reach `context_tokens`."""
        return PlanCache(self.planned, batch, context_tokens)

    def generate(
        self, inputs: Tensor | None = None, generation_config: GenerationConfig | None = None, **options: Any
    ) -> Any:
        """As transformers' `generate`, over the plan's cache; the length must be given, for it sizes the cache."""
        ids = options.get("input_ids", inputs)
        if ids is None:
            raise ArtefactError("generate: a planned model needs input_ids")
        if options.get("past_key_values") is None:
            told = generation_config or self.generation_config
            asked = {name: options.get(name, getattr(told, name)) or 0 for name in LENGTHS}
            if not asked["max_new_tokens"] and not asked["max_length"]:
                raise ArtefactError("generate: give max_new_tokens or max_length: the plan's windows depend on it")
            new = asked["max_new_tokens"]
            rows = max(options.get(name, getattr(told, name)) or 1 for name in REPEATS)
            options["past_key_values"] = self.plan_cache(
                len(ids) * rows, ids.shape[1] + new if new else asked["max_length"]
            )
        return cast(Any, super()).generate(inputs, generation_config, **options)


LENGTHS = ("max_new_tokens", "max_length")
REPEATS = ("num_beams", "num_return_sequences")


def from_pretrained(directory: str | Path) -> PreTrainedModel:
    """The model of an artefact directory, every file of it checked; ArtefactError where one is not as written."""
    planned = load(Path(directory))
    model = planned.model
    for part, mixin in ((model.base_model, PlannedDecoder), (model, PlannedGeneration)):
        part.__class__ = type(f"Planned{type(part).__name__}", (mixin, type(part)), {"planned": planned})
    return model
