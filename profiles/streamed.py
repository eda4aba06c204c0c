"""Gradients of a model's own log-likelihood, part by part, with the graph of one part in memory at a time.

The forward pass keeps what enters each decoder layer and nothing else. On the way back the head is run again in chunks
of positions, then each layer from the last to the first, and the gradients of all draws pass through it before its
graph is dropped: one forward pass more than with the whole graph, and about the memory of a single layer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, cast

import torch
from torch import Tensor
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface
from transformers.modeling_layers import GradientCheckpointingLayer

HEAD_CHUNK = 256
"""Scored positions whose logits are held at a time, those of all documents together."""

Part = int | Literal["head", "embedding"]
"""A decoder layer by its number, what follows the last one, or what goes before the first."""


@dataclass(frozen=True, slots=True)
class Attended:
    """What one layer's attention saw and gave.

    q        [documents, q_heads, tokens, head_dim]   after RoPE
    k, v     [documents, kv_heads, tokens, head_dim]
    out      [documents, q_heads, tokens, head_dim] in the graph, before the output projection
    """

    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    out: Tensor
    scale: float


See = Callable[[Attended], None]


def unseen(attended: Attended) -> None:
    """Look at nothing."""


def watched_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    see: See | None = None,
    sliding_window: int | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Dense causal attention that shows `see` its inputs and output."""
    if see is None:
        raise RuntimeError("watched attention was called with nobody to see it; use forward()")
    tokens = query.shape[2]
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    mask = None
    if sliding_window is not None and sliding_window < tokens:
        now = torch.arange(tokens)
        mask = (now <= now[:, None]) & (now > now[:, None] - sliding_window)
    out = torch.nn.functional.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, is_causal=mask is None, scale=scale, enable_gqa=True
    )
    see(Attended(cast(int, module.layer_idx), query.detach(), key.detach(), value.detach(), out, scale))
    return out.transpose(1, 2), None


AttentionInterface.register("watched", watched_attention)
AttentionMaskInterface.register("watched", lambda *args, **kwargs: None)  # the mask is built where it is needed


def forward(model: PreTrainedModel, tokens: Sequence[int], scored: int, see: See) -> Tensor:
    """Logits [scored, vocab] of the last positions of a document; `see` is shown every layer's attention."""
    model.set_attn_implementation("watched")
    embedded = model.get_input_embeddings()(torch.tensor([list(tokens)]))
    logits: Tensor = model(inputs_embeds=embedded, use_cache=False, see=see, logits_to_keep=scored).logits
    return logits[0]


def decoder_layers(model: PreTrainedModel) -> tuple[torch.nn.Module, ...]:
    """The layers of a decoder, first to last."""
    return tuple(each for each in model.modules() if isinstance(each, GradientCheckpointingLayer))


def part_of(model: PreTrainedModel) -> Mapping[str, int]:
    """The layer of each parameter that belongs to one, by its name."""
    number = {id(p): i for i, layer in enumerate(decoder_layers(model)) for p in layer.parameters()}
    return {name: number[id(p)] for name, p in model.named_parameters() if id(p) in number}


@dataclass
class _Entered:
    """What each layer was called with, and what left the last one."""

    inputs: list[Tensor] = field(default_factory=list)
    others: list[tuple[tuple[Any, ...], dict[str, Any]]] = field(default_factory=list)
    left: Tensor | None = None


Wanted = Callable[[Part], Sequence[Tensor]]
"""What gradients are wanted of in a part that was just run: tensors of its graph, and parameters of the model."""


def passed_back(
    model: PreTrainedModel,
    documents: Sequence[Sequence[int]],
    scored: int,
    draws: int,
    seed: int,
    wanted: Wanted,
    see: See,
) -> Iterator[tuple[Part, int, tuple[Tensor, ...]]]:
    """Gradients of the log-likelihood of labels that the model draws at the last `scored` positions of documents, which
    are of one length and pass through the model side by side.

    Part by part from the head to the embedding, for each draw in turn: the part, the number of the draw, and gradients
    of what is wanted there. The head comes once for each chunk of positions; a parameter of several parts, or several
    chunks, has the sum of all. `see` is shown the attention of a layer whenever its graph is built, before `wanted`.
    """
    layers, entered = decoder_layers(model), _Entered()
    model.set_attn_implementation("watched")
    with _replaced(layers, partial(_keeping, entered)), torch.enable_grad():
        embedded = model.get_input_embeddings()(torch.tensor([list(tokens) for tokens in documents]))
        model(inputs_embeds=embedded, use_cache=False, see=unseen, logits_to_keep=1)
    if entered.left is None or len(entered.inputs) != len(layers):
        raise RuntimeError(f"{type(model).__name__} ran {len(entered.inputs)} of its {len(layers)} decoder layers")
    before = wanted("embedding")
    toward = [torch.zeros_like(entered.left) for _ in range(draws)]
    generator = torch.Generator().manual_seed(seed)
    tokens, at_once = embedded.shape[1], max(1, HEAD_CHUNK // len(documents))
    for start in range(tokens - scored, tokens, at_once):
        chunk = slice(start, min(start + at_once, tokens))
        leaf = entered.left[:, chunk].detach().requires_grad_()
        with _replaced(layers, partial(_giving, leaf)), torch.enable_grad():
            logits = model(inputs_embeds=embedded[:, chunk].detach(), use_cache=False, see=unseen).logits
        found = [leaf, *wanted("head")]
        for draw, scalar in enumerate(drawn(logits.flatten(0, 1), draws, generator)):
            gradients = _gradients([scalar], found, None, draw == draws - 1)
            toward[draw][:, chunk] = gradients[0]
            yield "head", draw, gradients[1:]
    del logits, scalar, found, leaf
    for i in reversed(range(len(layers))):
        entering = entered.inputs.pop().detach().requires_grad_() if i else entered.inputs[0].detach().requires_grad_()
        args, kwargs = entered.others.pop()
        with torch.enable_grad():
            leaving = layers[i](entering, *args, **{**kwargs, "see": see})
        found = [entering, *wanted(i)]
        for draw in range(draws):
            gradients = _gradients([leaving], found, [toward[draw]], draw == draws - 1)
            toward[draw] = gradients[0]
            yield i, draw, gradients[1:]
        del leaving, found, entering
    if before and entered.inputs[0].requires_grad:
        for draw in range(draws):
            yield "embedding", draw, _gradients(entered.inputs, before, [toward[draw]], draw == draws - 1)


def _gradients(
    of: Sequence[Tensor], wanted: Sequence[Tensor], toward: Sequence[Tensor] | None, last: bool
) -> tuple[Tensor, ...]:
    """Gradients, zeros where nothing leads there; the graph is dropped after the last."""
    return torch.autograd.grad(of, wanted, toward, retain_graph=not last, materialize_grads=True)


def drawn(logits: Tensor, count: int, generator: torch.Generator) -> Iterator[Tensor]:
    """For each draw the log-likelihood (a scalar in the graph) of labels sampled from the model's own predictions."""
    chances = logits.detach().softmax(-1)
    total = logits.logsumexp(-1).sum()
    for _ in range(count):
        labels = torch.multinomial(chances, 1, generator=generator)
        yield logits.gather(-1, labels).sum() - total


@contextmanager
def _replaced(
    layers: Sequence[torch.nn.Module], by: Callable[[torch.nn.Module], Callable[..., Tensor]]
) -> Iterator[None]:
    """The layers with other forward methods while the block runs."""
    for layer in layers:
        layer.forward = by(layer)  # of the object: its class keeps its own
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


def _giving(leaf: Tensor, layer: torch.nn.Module) -> Callable[..., Tensor]:
    """A forward pass that gives the same whatever enters."""
    return lambda *args, **kwargs: leaf


def _keeping(entered: _Entered, layer: torch.nn.Module) -> Callable[..., Tensor]:
    """A layer's own forward pass without a graph, which leaves what it was called with."""
    own = layer.forward

    def kept(hidden: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        entered.inputs.append(hidden)
        entered.others.append((args, kwargs))
        with torch.no_grad():
            entered.left = cast(Tensor, own(hidden.detach(), *args, **kwargs))
        return entered.left

    return kept
