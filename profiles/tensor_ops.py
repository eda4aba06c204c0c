"""The tensor library's own operations as figures to take, on any device: products, attention, copies, a tiny decoder.

The same calls run on a CPU and on a GPU; only the clock differs. Matrices and caches take turns, so many that no cache
level of the device holds them from one turn to the next, as a model's layers do.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional

from profiles.record import Piece, calls
from profiles.timing import Clock, Sample

T = TypeVar("T")

Q_HEADS, KV_HEADS = 32, 8
CHUNK = 256
WIDE, NARROW = 128, 32
"""Numbers of a hidden state in the tiny decoder, and of a head: so few that a call costs what calling costs."""


@dataclass(frozen=True, slots=True)
class Ground:
    """Where tensors lie, the clock of what computes there, and how much its last cache level holds."""

    device: torch.device
    clock: Clock
    cache_bytes: int

    def turns(self, make: Callable[[], T], each_bytes: int) -> Iterator[T]:
        """Two of a thing or more, together more than twice what the cache holds, one after the other for ever."""
        return cycle([make() for _ in range(2 + 2 * self.cache_bytes // each_bytes)])

    def sampled(self, open_call: Callable[[], Callable[[], object]]) -> Callable[[float], Sample]:
        return calls(open_call, self.clock)


def product_pieces(
    ground: Ground, types: Sequence[str], tokens: Sequence[int], size: int, budget_s: float
) -> Iterator[Piece]:
    """Products of tokens with square matrices, in flop/s by tokens, for types of fp32, fp16, bf16, int8 and fp8."""
    for kind in types:
        # The library's integer product on a GPU wants more than 16 rows.
        for count in (n for n in tokens if n > 16 or kind != "int8" or ground.device.type == "cpu"):
            sample = ground.sampled(partial(_multiplying, ground, kind, count, size))
            yield Piece(f"torch {kind} product", "flop/s", "tokens", count, 2 * count * size**2, budget_s, sample)


def _multiplying(ground: Ground, kind: str, tokens: int, size: int) -> Callable[[], object]:
    def made(rows: int) -> Tensor:
        numbers = torch.randn(rows, size, device=ground.device)
        match kind:
            case "int8":
                return (20 * numbers).to(torch.int8)
            case "fp8":
                return numbers.to(torch.float8_e4m3fn)
            case _:
                return numbers.to({"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[kind])

    x = made(tokens)
    matrices = ground.turns(lambda: made(size), size * size * x.element_size())
    match kind:
        case "int8":
            return lambda: torch._int_mm(x, next(matrices).T)
        case "fp8":
            one = torch.ones((), device=ground.device)
            return lambda: torch._scaled_mm(x, next(matrices).T, one, one, out_dtype=torch.bfloat16)
        case _:
            return lambda: x @ next(matrices).T


def attention_pieces(
    ground: Ground, dtype: torch.dtype, slots: Sequence[int], head_dims: Sequence[int], budget_s: float
) -> Iterator[Piece]:
    """Attention of 32 query heads over 8 cached ones, in seconds by slots: of one token, and of a chunk of a prompt."""
    for head_dim in head_dims:
        for phase, tokens in (("decode", 1), ("prefill", CHUNK)):
            for count in slots:
                sample = ground.sampled(partial(_attending, ground, dtype, tokens, count, head_dim))
                yield Piece(f"torch attention {phase}, head {head_dim}", "s", "slots", count, 1, budget_s, sample)


def _attending(ground: Ground, dtype: torch.dtype, tokens: int, slots: int, head_dim: int) -> Callable[[], object]:
    def made(heads: int, length: int) -> Tensor:
        return torch.randn(1, heads, length, head_dim, device=ground.device, dtype=dtype)

    query = made(Q_HEADS, tokens)
    each_bytes = 2 * KV_HEADS * slots * head_dim * query.element_size()
    caches = ground.turns(lambda: (made(KV_HEADS, slots), made(KV_HEADS, slots)), each_bytes)

    def attend() -> Tensor:
        keys, values = next(caches)
        return functional.scaled_dot_product_attention(query, keys, values, enable_gqa=True)

    return attend


def copy_pieces(ground: Ground, sizes: Sequence[int], budget_s: float) -> Iterator[Piece]:
    """Copies within the device's memory, in bytes/s by bytes copied: each byte is read once and written once."""
    for size in sizes:
        sample = ground.sampled(partial(_copying, ground, size))
        yield Piece("memory copy", "bytes/s", "bytes", size, 2 * size, budget_s, sample)


def _copying(ground: Ground, size: int) -> Callable[[], object]:
    def made() -> Tensor:
        return torch.ones(size, dtype=torch.uint8, device=ground.device)

    pairs = ground.turns(lambda: (made(), made()), 2 * size)

    def copy() -> Tensor:
        to, source = next(pairs)
        return to.copy_(source)

    return copy


def link_pieces(ground: Ground, sizes: Sequence[int], budget_s: float) -> Iterator[Piece]:
    """Copies between pinned memory of the host and the device, both ways, in bytes/s by bytes copied."""
    for way in ("host to device", "device to host"):
        for size in sizes:
            sample = ground.sampled(partial(_crossing, ground, way == "host to device", size))
            yield Piece(way, "bytes/s", "bytes", size, size, budget_s, sample)


def _crossing(ground: Ground, inwards: bool, size: int) -> Callable[[], object]:
    host = torch.ones(size, dtype=torch.uint8, pin_memory=ground.device.type == "cuda")
    here = torch.ones(size, dtype=torch.uint8, device=ground.device)
    to, source = (here, host) if inwards else (host, here)
    return lambda: to.copy_(source, non_blocking=True)


def launch_pieces(ground: Ground, launches: int, budget_s: float) -> Iterator[Piece]:
    """Operations on one number, one behind the other, in seconds for each by how many they are."""

    def opened() -> Callable[[], object]:
        number = torch.zeros(1, device=ground.device)

        def launch() -> None:
            for _ in range(launches):
                number.add_(1)

        return launch

    yield Piece("launch", "s", "operations", launches, launches, budget_s, ground.sampled(opened))


def decoder_step(ground: Ground, layers: int, classes: int) -> Callable[[], object]:
    """A token through Llama's layers one operation at a time, all so small that calling them is what takes time.

    The heads of a layer attend in so many calls, and the next token is handed to the host.
    """
    matrix = torch.randn(WIDE, WIDE, device=ground.device) / WIDE
    gain = torch.ones(WIDE, device=ground.device)
    turn = torch.ones(1, NARROW, device=ground.device)
    cached = torch.randn(1, WIDE // NARROW, 16, NARROW, device=ground.device)
    token = torch.zeros(1, dtype=torch.long, device=ground.device)

    def turned(x: Tensor) -> Tensor:
        heads = x.view(1, -1, 1, NARROW)
        half = torch.cat((-heads[..., NARROW // 2 :], heads[..., : NARROW // 2]), -1)
        return heads * turn + half * turn

    def attend(queries: Tensor) -> Tensor:
        parts = queries.chunk(classes, 1)
        return torch.cat(
            [
                functional.scaled_dot_product_attention(q, cached[:, : q.shape[1]], cached[:, : q.shape[1]])
                for q in parts
            ],
            1,
        )

    def step() -> int:
        x = functional.embedding(token, matrix)
        for _ in range(layers):
            h = functional.rms_norm(x, (WIDE,), gain)
            q, k, v = turned(h @ matrix), turned(h @ matrix), h @ matrix
            cached[:, :, :1] = k
            cached[:, :, 1:2] = v.view(1, -1, 1, NARROW)
            x = x + attend(q).view(1, WIDE) @ matrix
            h = functional.rms_norm(x, (WIDE,), gain)
            x = x + (functional.silu(h @ matrix) * (h @ matrix)) @ matrix
        return int((functional.rms_norm(x, (WIDE,), gain) @ matrix).argmax(-1).item())

    return step
