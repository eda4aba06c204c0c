"""Presses of kvpress at work: their KL on ends of documents, and what they answer to prompts.

    python benchmarks/kvpress_worker.py ASKED.json RESULTS

Runs in an environment that has kvpress, torch and transformers and not this project; `benchmarks.presses` writes what
is asked and reads the results. All presses see the one prefill of a prompt, which is dense, as in kvpress's own
pipeline: each compresses the cache of every layer, and goes on from its own. The rest is fed at its true positions, and
each layer has a mask of its own, since layers then differ in length; slots that a press masks are out of sight there.
Each document and prompt is a file of the results, not done twice.
"""

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pandas
import torch
from kvpress import (
    AdaKVPress,
    BasePress,
    DuoAttentionPress,
    ExpectedAttentionPress,
    PyramidKVPress,
    SnapKVPress,
    TOVAPress,
)
from kvpress.presses import duo_attention_press
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

SCORED_TEXTS = 16
"""Pieces of text on which DuoAttention's heads are scored."""

Layer = tuple[torch.Tensor, torch.Tensor, tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None]
"""Keys and values [1, heads, slots, head_dim] of one layer, and which (batch, head, slot) are masked."""


@dataclass
class StreamingHeads(DuoAttentionPress):
    """DuoAttention with a window of our own and as many streaming heads as are asked for."""

    sinks: int = 128
    recent: int = 256
    streaming: int = 0

    def post_init_from_model(self, model: PreTrainedModel) -> None:
        self.head_compression_ratio = self.streaming / (
            model.config.num_hidden_layers * model.config.num_key_value_heads
        )
        super().post_init_from_model(model)
        self.sink_size, self.recent_size = self.sinks, self.recent


def made(asked: Mapping[str, object], prompt_tokens: int) -> BasePress:
    """The press that is asked for; `kept` of the prompt's tokens stay, on average over heads and layers."""
    kept = float(str(asked["kept"]))
    # kvpress rounds what it keeps down, and PyramidKV to the nearest.
    ratio = 1 - (kept + 0.5) / prompt_tokens
    match str(asked["press"]):
        case "snapkv":
            return SnapKVPress(ratio, window_size=int(str(asked["window"])))
        case "adakv-snapkv":
            return AdaKVPress(SnapKVPress(ratio))
        case "adakv-expected":
            return AdaKVPress(ExpectedAttentionPress(ratio, epsilon=1e-2))
        case "expected":
            return ExpectedAttentionPress(ratio, epsilon=float(str(asked["epsilon"])))
        case "tova":
            return TOVAPress(ratio)
        case "pyramidkv":
            return PyramidKVPress(1 - kept / prompt_tokens, window_size=int(str(asked["window"])))
        case "duo":
            window = int(str(asked["sinks"])), int(str(asked["recent"]))
            return StreamingHeads(
                on_the_fly_scoring=True, sinks=window[0], recent=window[1], streaming=int(str(asked["streaming"]))
            )
        case other:
            raise ValueError(f"presses: found {other!r}")


@dataclass
class Menu(BasePress):
    """Lets every press compress the same prompt, and leaves the cache whole."""

    presses: Mapping[str, BasePress]
    layers: dict[str, list[Layer]] = field(default_factory=dict)

    def post_init_from_model(self, model: PreTrainedModel) -> None:
        for press in self.presses.values():
            press.post_init_from_model(model)

    def compress(
        self,
        module: torch.nn.Module,
        hidden_states: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        attentions: torch.Tensor,
        kwargs: dict[str, object],
    ) -> tuple[torch.Tensor, torch.Tensor]:
        for name, press in self.presses.items():
            module.masked_key_indices = None
            k, v = press.compress(module, hidden_states, keys, values, attentions, kwargs)
            self.layers.setdefault(name, []).append((k, v, module.masked_key_indices))
        module.masked_key_indices = None
        self.layers.setdefault("dense", []).append((keys, values, None))
        return keys, values


class Texts:
    """The texts that heads are scored on, in the place of a data set that has to be downloaded."""

    def __init__(self, texts: Sequence[str]) -> None:
        self.texts = texts

    def to_pandas(self) -> pandas.DataFrame:
        return pandas.DataFrame({"chapter": list(self.texts)})


class Continued:
    """A model that goes on after a compressed prompt."""

    def __init__(self, model: PreTrainedModel, layers: Sequence[Layer], position: int) -> None:
        self.model, self.position, self.cache = model, position, DynamicCache()
        self.masked = [masked for _, _, masked in layers]
        for index, (keys, values, _) in enumerate(layers):
            self.cache.update(keys, values, index)

    def read(self, tokens: Sequence[int]) -> torch.Tensor:
        """Log-probabilities [tokens, vocabulary] of what follows each of the next tokens."""
        hooks = [
            layer.self_attn.register_forward_pre_hook(partial(self._seeing, index), with_kwargs=True)
            for index, layer in enumerate(self.model.model.layers)
        ]
        try:
            out = self.model(
                input_ids=torch.tensor([list(tokens)]),
                past_key_values=self.cache,
                position_ids=torch.arange(self.position, self.position + len(tokens))[None],
            )
        finally:
            for hook in hooks:
                hook.remove()
        self.position += len(tokens)
        return torch.log_softmax(out.logits[0].float(), -1)

    def _seeing(
        self, index: int, module: torch.nn.Module, args: tuple[object, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[object, ...], dict[str, Any]]:
        """The call with a layer's own mask: all of its cache but what is masked, and no later token."""
        past, new = self.cache.layers[index].keys.shape[2], kwargs["hidden_states"].shape[1]
        heads = self.model.config.num_key_value_heads
        sees = torch.ones(1, heads, new, past + new, dtype=torch.bool).tril(past)
        if self.masked[index] is not None:
            _, head, slot = self.masked[index]
            sees[:, head, :, slot] = False
        group = self.model.config.num_attention_heads // heads
        return args, {**kwargs, "attention_mask": sees.repeat_interleave(group, 1)}

    def slots(self) -> tuple[int, int]:
        """(slots of heads that are stored at the end, those of them that are masked)."""
        stored = sum(int(layer.keys.shape[1] * layer.keys.shape[2]) for layer in self.cache.layers)
        return stored, sum(0 if masked is None else len(masked[0]) for masked in self.masked)


def compressed(model: PreTrainedModel, asked: Sequence[Mapping[str, object]], prompt: Sequence[int]) -> Menu:
    """What every press leaves of a prompt, and the whole of it under "dense"."""
    menu = Menu({str(each["name"]): made(each, len(prompt)) for each in asked})
    with menu(model):
        model.model(input_ids=torch.tensor([list(prompt)]), past_key_values=DynamicCache())
    return menu


def end_of_document(
    model: PreTrainedModel, asked: Sequence[Mapping[str, object]], ids: Sequence[int], tail: int
) -> dict[str, dict[str, float]]:
    """KL from the dense model over the last `tail` positions, the text's NLL there, and the slots at the end."""
    prompt, rest = ids[: len(ids) - tail], ids[len(ids) - tail :]
    menu, found = compressed(model, asked, prompt), {}
    whole = Continued(model, menu.layers["dense"], len(prompt))
    dense = whole.read(rest)
    for name, layers in menu.layers.items():
        going = Continued(model, layers, len(prompt))
        told = going.read(rest)
        stored, masked = going.slots()
        found[name] = {
            "loss_nats": float((dense.exp() * (dense - told)).sum(-1, dtype=torch.float64).mean()),
            "nll_nats": float(-told[torch.arange(tail - 1), torch.tensor(rest[1:])].mean(dtype=torch.float64)),
            "stored_slots": stored,
            "masked_slots": masked,
        }
    return found


def answers(
    model: PreTrainedModel, asked: Sequence[Mapping[str, object]], ids: Sequence[int], question: int, new_tokens: int
) -> dict[str, dict[str, object]]:
    """What every press answers greedily to a question that it did not see when it compressed what comes before."""
    prompt, rest = ids[: len(ids) - question], ids[len(ids) - question :]
    menu, found = compressed(model, asked, prompt), {}
    for name, layers in menu.layers.items():
        going, told = Continued(model, layers, len(prompt)), []
        last = going.read(rest)[-1]
        for _ in range(new_tokens):
            told.append(int(last.argmax()))
            last = going.read(told[-1:])[-1]
        stored, masked = going.slots()
        found[name] = {"answer": told, "stored_slots": stored, "masked_slots": masked}
    return found


def missing(results: Path, names: Mapping[str, object]) -> Iterator[str]:
    """The cells that are not there yet."""
    for name in names:
        if not (results / f"{name}.json").is_file():
            yield name
            print(name, flush=True)


def main() -> None:
    asked, results = json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2])
    results.mkdir(parents=True, exist_ok=True)
    duo_attention_press.load_dataset = lambda *_, **__: Texts(asked["texts"][:SCORED_TEXTS])
    score = duo_attention_press.duo_attention_on_the_fly
    duo_attention_press.duo_attention_on_the_fly = lambda model: score(model, num_samples=SCORED_TEXTS)
    model = AutoModelForCausalLM.from_pretrained(asked["model"], dtype=torch.float32, attn_implementation="sdpa").eval()

    def keep(name: str, found: object) -> None:
        part = results / f".{name}"
        part.write_text(json.dumps(found))
        part.rename(results / f"{name}.json")

    with torch.no_grad():
        for name in missing(results, asked["documents"]):
            each = asked["documents"][name]
            keep(name, end_of_document(model, each["presses"], each["ids"], each["tail"]))
        for name in missing(results, asked["prompts"]):
            each = asked["prompts"][name]
            keep(name, answers(model, each["presses"], each["ids"], each["question"], asked["answer_tokens"]))


if __name__ == "__main__":
    main()
