"""The pieces of the transformers runner whose speed decides a plan's seconds on a CPU, for the hardware profile."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from backends.transformers.grouped import quantise
from backends.transformers.runner import ClassEntry, Code, Packed, PlannedModel, pack
from planner.executor import Probed, ProbedAttention, ProbedDecoder

ROWS, COLS, GROUP = 1536, 576, 32
HEADS, TOKENS, HEAD_DIM = 3, 2048, 64


def tiny(layers: int) -> LlamaForCausalLM:
    """A Llama so small that a call costs what calling costs."""
    config = LlamaConfig(
        hidden_size=32, intermediate_size=32, num_attention_heads=2, num_key_value_heads=2, num_hidden_layers=layers,
        vocab_size=32, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.set_attn_implementation("planned")
    model.requires_grad_(False)
    model.train(False)
    return model


@dataclass(frozen=True)
class RunnerProbe:
    """Calls of the runner itself on data of ordinary sizes."""

    runtime: str = "transformers"
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

    def products(self) -> tuple[Probed, ...]:
        return ()

    def attention(self) -> tuple[ProbedAttention, ...]:
        return ()

    def decoder(self, layers: int, classes: int) -> ProbedDecoder:
        each: list[ClassEntry] = [
            {"heads": heads, "k_bits": 4, "v_bits": 4, "sinks": 4, "alpha": 16 + i, "beta": 0.0, "reach": None}
            for i, heads in enumerate([[0, 1]] if classes == 1 else [[0], [1]])
        ]
        model = PlannedModel(tiny(layers), {"head_dim": [16] * layers, "layers": [each] * layers}, {})
        cache = model.cache(1, 2048)
        token = torch.zeros(1, 1, dtype=torch.long)

        def step() -> Tensor:
            cache.seen.fill_(30)  # the cache never runs full, however often it is called
            return model.logits(model.step(cache, token)[:, -1]).argmax(-1)

        return ProbedDecoder(step)
