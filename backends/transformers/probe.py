"""The pieces of the transformers runner whose speed decides a plan's seconds on a CPU, for the hardware profile."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM

from backends.transformers.grouped import quantise
from backends.transformers.runner import ClassCache, Code, HeadClass, Layout, Packed, PlannedModel, pack

ROWS, COLS, GROUP = 1536, 576, 32
HEADS, TOKENS, HEAD_DIM = 3, 2048, 64


def no_attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **_: object
) -> tuple[Tensor, None]:
    """Stands in for attention where only what surrounds it is timed."""
    return query.transpose(1, 2), None


AttentionInterface.register("none", no_attention)


def tiny(layers: int, attention: str) -> LlamaForCausalLM:
    """A Llama so small that a call costs what calling costs."""
    config = LlamaConfig(
        hidden_size=32, intermediate_size=32, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=layers,
        vocab_size=32, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.set_attn_implementation(attention)
    model.requires_grad_(False)
    model.train(False)
    return model


@dataclass(frozen=True)
class RunnerProbe:
    """Calls of the runner itself on data of ordinary sizes."""

    name: str = "transformers runner 1"

    def expand_weights(self, bits: int) -> tuple[int, Callable[[], object]] | None:
        if bits == 16:
            floats = {"w::floats": torch.randn(ROWS, COLS).half()}
            packed = Packed("w", {"scheme": "float", "bits": 16, "offset": None}, floats)
        elif bits in (2, 3, 4, 5, 8):
            packed = Packed("w", {"scheme": "grouped", "bits": bits, "offset": None}, self._parts(bits))
        else:
            return None
        return ROWS * COLS, packed.dense

    @staticmethod
    def _parts(bits: int) -> dict[str, Tensor]:
        if bits == 5:  # only sources have 5 bits, and any codes expand alike
            codes = torch.randint(0, 32, (ROWS, COLS), dtype=torch.uint8)
            scale = torch.ones(ROWS, COLS // GROUP, dtype=torch.float16)
            return {"w::codes": pack(codes, 5), "w::scale": scale, "w::minimum": scale}
        codes, scale, minimum = quantise(torch.randn(ROWS, COLS), bits, GROUP)
        return {"w::codes": pack(codes, bits), "w::scale": scale, "w::minimum": minimum}

    def expand_kv(self, bits: int) -> tuple[int, Callable[[], object]] | None:
        if bits not in (2, 3, 4, 8, 16):
            return None
        code = self._code(bits)
        stored = code.encode(torch.randn(1, HEADS, TOKENS, HEAD_DIM))
        return HEADS * TOKENS * HEAD_DIM, lambda: code.decode(stored)

    @staticmethod
    def _code(bits: int) -> Code:
        return Code(bits, HEAD_DIM, torch.zeros(HEADS, 1, HEAD_DIM), torch.ones(HEADS, 1, HEAD_DIM))

    def layer_overhead(self) -> Callable[[], object]:
        model = tiny(1, "none")
        hidden, positions = torch.zeros(1, 1, 32), torch.zeros(1, 1, dtype=torch.long)
        rotary = model.model.rotary_emb(hidden, positions)
        return lambda: model.model.layers[0](hidden, position_embeddings=rotary, attention_mask=None)

    def kernel_overhead(self) -> Callable[[], object]:
        code = self._code(4)
        kind = HeadClass((0, 1, 2), 4, 4, sinks=4, alpha=16, beta=0.0, reach=None)
        cache = ClassCache(kind, code, code, batch=1, context_tokens=64)
        q, k = torch.zeros(1, HEADS, 3, 1, HEAD_DIM), torch.zeros(1, HEADS, 1, HEAD_DIM)
        layout = Layout(cache.sinks, cache.slots, torch.tensor([30]), torch.ones(1, 1, dtype=torch.bool))
        return lambda: cache.attend(q, k, k, layout, 0.125)

    def step_overhead(self) -> Callable[[], object]:
        model = PlannedModel(tiny(0, "planned"), {"head_dim": [], "layers": []}, {})
        token = torch.zeros(1, 1, dtype=torch.long)

        def step() -> Tensor:
            cache = model.cache(1, 2)
            return model.logits(model.step(cache, token)[:, -1]).argmax(-1)

        return step
