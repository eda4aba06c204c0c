"""Gradients that pass back part by part are those of the whole graph, and no layer's graph outlives its turn."""

import gc
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from profiles import streamed
from profiles.streamed import Attended, Part, decoder_layers, drawn, forward, part_of, passed_back, unseen
from tests.backends.oracle import subject, tokens_of

FAMILIES = ("llama", "qwen2", "qwen3", "mistral", "gemma3_text", "phi", "gpt2", "phi3", "mixtral")
TOKENS, SCORED, DRAWS, SEED = 40, 24, 3, 5


def test_draws_are_of_the_models_own_predictions() -> None:
    """The labels' mean log-likelihood is minus the entropy, and a seed gives the same labels again."""
    logits = torch.randn(4000, 11, generator=torch.Generator().manual_seed(0))
    entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum()
    first, again = (torch.stack(list(drawn(logits, 5, torch.Generator().manual_seed(3)))) for _ in range(2))
    assert torch.equal(first, again)
    assert len(set(first.tolist())) == 5
    assert float(first.mean()) == pytest.approx(-float(entropy), rel=0.02)


@pytest.mark.parametrize("family", FAMILIES)
def test_forward_is_the_model(tiny: Callable[[str], Path], family: str) -> None:
    """Watching changes no logit, sliding windows included, and shows what attention saw."""
    model, tokens, seen = subject(tiny(family)), tokens_of(60), dict[int, Attended]()
    plain = model.plainly(tokens)
    logits = forward(model.model, tokens, 20, lambda attended: seen.update({attended.layer: attended}))
    assert torch.allclose(logits.detach(), plain[-20:], atol=5e-4)
    for i, layer in enumerate(model.spec.layers):
        assert seen[i].q.shape == (1, layer.q_heads, 60, layer.head_dim)
        assert seen[i].k.shape == seen[i].v.shape == (1, layer.kv_heads, 60, layer.head_dim)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_are_those_of_the_whole_graph(
    tiny: Callable[[str], Path], family: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of every parameter, the tied embedding among them, and of every layer's attention; in chunks of the head, and
    with documents side by side."""
    monkeypatch.setattr(streamed, "HEAD_CHUNK", 10)
    model, documents = subject(tiny(family)).model, [tokens_of(TOKENS, seed=i) for i in range(count)]
    model.requires_grad_(True)
    parameters, layer_of = dict(model.named_parameters()), part_of(model)
    assert set(layer_of.values()) == set(range(len(decoder_layers(model))))
    seen: dict[int, Tensor] = {}
    names: dict[Part, list[str]] = {"head": [name for name in parameters if name not in layer_of]}
    names["embedding"] = names["head"]
    for name, layer in layer_of.items():
        names.setdefault(layer, []).append(name)

    def see(attended: Attended) -> None:
        seen[attended.layer] = attended.out

    def wanted(part: Part) -> Sequence[Tensor]:
        own = [parameters[name] for name in names[part]]
        return [*own, seen[part]] if isinstance(part, int) else own

    found = {(name, draw): torch.zeros_like(p) for name, p in parameters.items() for draw in range(DRAWS)}
    attention = dict[tuple[int, int], Tensor]()
    order = list[Part]()
    for part, draw, gradients in passed_back(model, documents, SCORED, DRAWS, SEED, wanted, see):
        order += [part] if not order or order[-1] != part else []
        for name, gradient in zip(names[part], gradients, strict=False):
            found[name, draw] += gradient
        if isinstance(part, int):
            attention[part, draw] = gradients[-1]
    assert order == ["head", *reversed(range(len(decoder_layers(model)))), "embedding"]
    assert not any("forward" in vars(layer) for layer in decoder_layers(model))

    logits, outs = list[Tensor](), list[Tensor]()
    for document in documents:
        seen.clear()
        logits.append(forward(model, document, SCORED, see))
        outs += [seen[i] for i in range(len(decoder_layers(model)))]
    for draw, scalar in enumerate(in_chunks(torch.stack(logits), 10 // count)):
        told = torch.autograd.grad(scalar, [*parameters.values(), *outs], retain_graph=True, materialize_grads=True)
        for (name, _), gradient in zip(parameters.items(), told, strict=False):
            assert torch.allclose(found[name, draw], gradient, rtol=1e-3, atol=1e-4 * scale(gradient)), name
        for i, gradient in enumerate(told[len(parameters) :]):
            document, layer = divmod(i, len(decoder_layers(model)))
            streamed_back = attention[layer, draw][document]
            assert torch.allclose(streamed_back, gradient[0], rtol=1e-3, atol=1e-4 * scale(gradient)), i


def test_a_graph_does_not_outlive_its_layer(tiny: Callable[[str], Path]) -> None:
    model, alive = subject(tiny("llama")).model, dict[int, "weakref.ref[Tensor]"]()
    model.requires_grad_(False)
    graphs: dict[int, Tensor] = {}

    def wanted(part: Part) -> Sequence[Tensor]:
        return [graphs.pop(part)] if isinstance(part, int) else []

    def see(attended: Attended) -> None:
        graphs[attended.layer] = attended.out
        alive[attended.layer] = weakref.ref(attended.out)

    for part, _, _ in passed_back(model, [tokens_of(TOKENS)], SCORED, 2, SEED, wanted, see):
        gc.collect()
        assert {i for i, out in alive.items() if out() is not None} <= {part}


def test_a_killed_pass_leaves_the_model_as_it_was(tiny: Callable[[str], Path]) -> None:
    model = subject(tiny("llama")).model

    def stopped(attended: Attended) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(passed_back(model, [tokens_of(TOKENS)], SCORED, 1, SEED, lambda part: [], stopped))
    assert not any("forward" in vars(layer) for layer in decoder_layers(model))
    assert forward(model, tokens_of(TOKENS), 1, unseen).isfinite().all()


def scale(x: Tensor) -> float:
    return max(float(x.abs().max()), 1e-6)


def in_chunks(logits: Tensor, size: int) -> list[Tensor]:
    """The log-likelihood of each draw for logits [documents, scored, vocab], labels drawn chunk by chunk from one
    generator."""
    generator = torch.Generator().manual_seed(SEED)
    each = [torch.stack(list(drawn(chunk.flatten(0, 1), DRAWS, generator))) for chunk in logits.split(size, 1)]
    return list(torch.stack(each).sum(0))
