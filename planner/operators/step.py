"""From operators to one step of a dense transformer under tensor parallelism: sequences decoded, prompts read."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from planner.errors import InputError

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class DenseModel:
    """The shapes of a dense decoder with grouped-query attention and a gated feed-forward network.

    >>> LLAMA_70B = DenseModel(80, 8192, 64, 8, 128, 28672, 128256)
    >>> f"{LLAMA_70B.matrix_elements / 1e9:.1f} + {LLAMA_70B.embedding_elements / 1e9:.1f} billion"
    '68.5 + 2.1 billion'
    """

    layers: int
    hidden: int
    q_heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    qk_norm: bool = False

    @property
    def matrix_elements(self) -> int:
        """Weights of the layers' matrices, which a checkpoint may store in few bits."""
        attention = self.hidden * self.head_dim * (2 * self.q_heads + 2 * self.kv_heads)
        return self.layers * (attention + 3 * self.hidden * self.ffn)

    @property
    def embedding_elements(self) -> int:
        """Weights of the embedding and the head together, in 16 bits whatever the checkpoint."""
        return 2 * self.vocab * self.hidden


class Operators(Protocol):
    """How long single operators take on one GPU, in seconds; arrays in, arrays of the same shape out."""

    def gemm_s(self, kind: str, m: Floats, n: Floats | int, k: Floats | int) -> Floats: ...

    def decode_attention_s(
        self, batch: Floats, q_heads: int, kv_heads: int, head_dim: int, context: Floats, kv_bits: int
    ) -> Floats: ...

    def prefill_attention_s(
        self, batch: Floats, q_heads: int, kv_heads: int, head_dim: int, prompt: Floats, kv_bits: int
    ) -> Floats: ...

    def all_reduce_s(self, gpus: int, message_bytes: Floats) -> Floats: ...

    def memory_s(self, moved_bytes: Floats) -> Floats: ...


KIND_BITS = {"bf16": 16, "fp8": 8, "fp8_block": 8, "int8": 8, "int8_wo": 8, "int4_wo": 4, "fp4": 4}


@dataclass(frozen=True, slots=True)
class Step:
    """One GPU's part of a model cut into `gpus` equal parts by heads and columns (Megatron-LM, arXiv 1909.08053).

    `kind` is the type the layers' products run in, as the GEMM models name it; the head runs in bf16. `kernel_s` is
    what a small kernel takes before it moves a byte: launch, drain and the gap to its neighbours. Norms, rotation,
    cache write, activation and residual are `kernels` such kernels a layer; products and attention carry their own.
    """

    model: DenseModel
    operators: Operators
    gpus: int
    kind: str
    kv_bits: int
    kernels: int = 5
    kernel_s: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KIND_BITS:
            raise InputError(f"no products of kind {self.kind!r}; known: {', '.join(KIND_BITS)}")
        if self.gpus < 1 or self.model.q_heads % self.gpus:
            raise InputError(f"{self.model.q_heads} query heads cannot be shared evenly by {self.gpus} GPUs")

    @property
    def q_heads(self) -> int:
        return self.model.q_heads // self.gpus

    @property
    def kv_heads(self) -> int:
        """KV heads a GPU holds; with fewer heads than GPUs each is held more than once."""
        return max(1, self.model.kv_heads // self.gpus)

    @property
    def weight_bytes(self) -> float:
        """Weights one GPU holds."""
        model = self.model
        return (model.matrix_elements * KIND_BITS[self.kind] / 8 + model.embedding_elements * 2) / self.gpus

    @property
    def kv_bytes_per_token(self) -> float:
        """Keys and values one token leaves on one GPU."""
        return 2 * self.model.layers * self.kv_heads * self.model.head_dim * self.kv_bits / 8

    def tokens_s(self, tokens: ArrayLike) -> Floats:
        """All that depends on the count of tokens alone: products, all-reduces and small kernels of every layer.

        tokens  any shape: new tokens of the step, decoded and of prompts together
        """
        m = np.asarray(tokens, np.float64)
        model, operators = self.model, self.operators
        heads = (self.q_heads + 2 * self.kv_heads) * model.head_dim
        ffn = model.ffn // self.gpus
        layer = (
            operators.gemm_s(self.kind, m, heads, model.hidden)
            + operators.gemm_s(self.kind, m, model.hidden, self.q_heads * model.head_dim)
            + operators.gemm_s(self.kind, m, 2 * ffn, model.hidden)
            + operators.gemm_s(self.kind, m, model.hidden, ffn)
            + 2 * operators.all_reduce_s(self.gpus, 2 * m * model.hidden)
            + operators.memory_s(m * self._small_bytes(heads, ffn))
            + self.kernels * self.kernel_s
        )
        return model.layers * layer

    def head_s(self, rows: ArrayLike) -> Floats:
        """Logits of so many positions."""
        return self.operators.gemm_s(
            "bf16", np.asarray(rows, np.float64), self.model.vocab // self.gpus, self.model.hidden
        )

    def decode_attention_s(self, batch: ArrayLike, context: ArrayLike) -> Floats:
        """One new token in each of `batch` sequences that hold `context` tokens on average."""
        m, n = np.broadcast_arrays(np.asarray(batch, np.float64), np.asarray(context, np.float64))
        return self.model.layers * self.operators.decode_attention_s(
            m, self.q_heads, self.kv_heads, self.model.head_dim, n, self.kv_bits
        )

    def prefill_attention_s(self, prompt: ArrayLike) -> Floats:
        """Causal attention of one prompt from its first token to its last."""
        n = np.asarray(prompt, np.float64)
        return self.model.layers * self.operators.prefill_attention_s(
            np.ones(n.shape), self.q_heads, self.kv_heads, self.model.head_dim, n, self.kv_bits
        )

    def decode_s(self, batch: ArrayLike, context: ArrayLike) -> Floats:
        """One token for every sequence of a batch."""
        return self.tokens_s(batch) + self.head_s(batch) + self.decode_attention_s(batch, context)

    def prefill_s(self, prompt: ArrayLike) -> Floats:
        """One prompt by itself, to its first token."""
        return self.tokens_s(prompt) + self.head_s(np.ones(np.shape(prompt))) + self.prefill_attention_s(prompt)

    def _small_bytes(self, heads: int, ffn: int) -> int:
        """Bytes a token moves in a layer outside products and attention, in 16 bits.

        Two norms read two streams and write two, rotation and cache write pass over the heads once, the activation
        reads both halves of the gated network and writes one.
        """
        return 2 * (2 * 4 * self.model.hidden + 2 * heads + 3 * ffn)
