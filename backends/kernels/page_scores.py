"""Pages of keys by how much a query may attend to them: bounds of each page, scores from bounds, the best of each head.

A page keeps the least and the greatest value of every channel of its keys. No key of the page can score higher than

    sum over channels of max(q * least, q * greatest)  =  max(q, 0) . greatest + min(q, 0) . least

which takes two products with whole pages of bounds instead of one with every key (Quest,
https://arxiv.org/abs/2406.10774). Query heads that share keys share pages: a page's score is the highest bound that
any query head of the group has. Each KV head has its own budget of pages; of equal scores the lower page is taken, and
pages are listed in ascending order, so that results repeat and neighbours are read together. Empty pages are never
taken.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .contract import Check, Launch, Variant
from .numerics import dot, rounded

TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}


@dataclass(frozen=True)
class Shape:
    """The pages of one layer.

    page      tokens of a page
    pages     places for pages of each sequence
    lengths   tokens of each sequence
    budgets   pages that each KV head may take
    equal     whether `check` gives pages alike keys, so that scores tie
    """

    head_dim: int
    group: int
    page: int
    pages: int
    lengths: tuple[int, ...]
    budgets: tuple[int, ...]
    equal: bool = False


# --- kernels ------------------------------------------------------------------------------------


@triton.jit
def page_bounds_kernel(
    keys,
    low,
    high,
    lengths,
    since,
    capacity,
    pages,
    HEADS: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The bounds of one page, if it holds a token from `since` on; else nothing is read or written."""
    page, head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + sequence)
    if (page * PAGE < length) & ((page + 1) * PAGE > tl.load(since + sequence)):
        place = (sequence * HEADS + head).to(tl.int64)
        token, d = page * PAGE + tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_D)
        inside = (token < tl.minimum(length, (page + 1) * PAGE))[:, None]
        at = keys + (place * capacity + token)[:, None] * DIM + d[None, :]
        x = tl.load(at, inside & (d < DIM)[None, :], 0.0).to(tl.float32)
        least = tl.min(tl.where(inside, x, float("inf")), 0)
        most = tl.max(tl.where(inside, x, float("-inf")), 0)
        there = (place * pages + page) * DIM + d
        tl.store(low + there, rounded(least, low.dtype.element_ty), d < DIM)
        tl.store(high + there, rounded(most, high.dtype.element_ty), d < DIM)


@triton.jit
def page_scores_kernel(
    q,
    low,
    high,
    lengths,
    scores,
    pages,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    PAGE: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Scores of BLOCK_P pages of one KV head of one sequence; minus infinity where a page is empty."""
    head, sequence = tl.program_id(1), tl.program_id(2)
    place = (sequence * HEADS + head).to(tl.int64)
    length = tl.load(lengths + sequence)
    g, d = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
    page = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    held = (page < pages) & (page * PAGE < length)
    x = tl.load(q + (place * GROUP + g)[:, None] * DIM + d[None, :], (g < GROUP)[:, None] & (d < DIM)[None, :], 0.0)
    positive = rounded(tl.maximum(x.to(tl.float32), 0.0), x.dtype)
    negative = rounded(tl.minimum(x.to(tl.float32), 0.0), x.dtype)
    there = (place * pages + page)[:, None] * DIM + d[None, :]
    mask = held[:, None] & (d < DIM)[None, :]
    bound = tl.zeros([BLOCK_G, BLOCK_P], tl.float32)
    bound = dot(positive, tl.trans(tl.load(high + there, mask, 0.0)), bound)
    bound = dot(negative, tl.trans(tl.load(low + there, mask, 0.0)), bound)
    best = tl.max(tl.where((g < GROUP)[:, None], bound, float("-inf")), 0)
    tl.store(scores + place * pages + page, tl.where(held, best, float("-inf")), page < pages)


@triton.jit
def order(x):
    """Unsigned integers in the order of float32 numbers; both zeros are one."""
    bits = (x + 0.0).to(tl.int32, bitcast=True)
    return (bits ^ ((bits >> 31) & 0x7FFFFFFF)).to(tl.uint32, bitcast=True) ^ 0x80000000


@triton.jit
def top_pages_kernel(scores, budgets, chosen, counts, pages, most, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    """The best pages of one KV head of one sequence.

    The score of the last page to take is found bit by bit from the top, by counting pages that reach it; then all
    above it are taken, and of those equal to it the first ones. No sort, so a program holds BLOCK pages at a time.
    """
    head, sequence = tl.program_id(0), tl.program_id(1)
    place = (sequence * HEADS + head).to(tl.int64)
    scores += place * pages
    chosen += place * most
    n = tl.arange(0, BLOCK)
    held = 0
    for start in range(0, pages, BLOCK):
        x = tl.load(scores + start + n, start + n < pages, float("-inf"))
        held += tl.sum((x > float("-inf")).to(tl.int32), 0)
    wanted = tl.minimum(tl.minimum(tl.load(budgets + head), most), held)

    limit = tl.full([1], 0, tl.uint32)
    for bit in range(32):
        trial = limit | (tl.full([1], 0x80000000, tl.uint32) >> bit)
        reach = 0
        for start in range(0, pages, BLOCK):
            x = tl.load(scores + start + n, start + n < pages, float("-inf"))
            reach += tl.sum((order(x) >= trial).to(tl.int32), 0)
        limit = tl.where(reach >= wanted, trial, limit)

    above = 0
    for start in range(0, pages, BLOCK):
        x = tl.load(scores + start + n, start + n < pages, float("-inf"))
        above += tl.sum((order(x) > limit).to(tl.int32), 0)
    taken, ties = 0, 0
    for start in range(0, pages, BLOCK):
        x = order(tl.load(scores + start + n, start + n < pages, float("-inf")))
        tie = (x == limit).to(tl.int32)
        take = (x > limit) | ((tie > 0) & (ties + tl.cumsum(tie, 0) <= wanted - above))
        tl.store(chosen + taken + tl.cumsum(take.to(tl.int32), 0) - 1, start + n, take & (start + n < pages))
        taken += tl.sum(take.to(tl.int32), 0)
        ties += tl.sum(tie, 0)
    for start in range(0, most, BLOCK):
        tl.store(chosen + start + n, -1, (start + n >= taken) & (start + n < most))
    tl.store(counts + place, taken)


# --- running it ---------------------------------------------------------------------------------


def page_bounds(
    keys: Tensor, lengths: Tensor, since: Tensor, low: Tensor, high: Tensor, page: int, variant: Variant | None = None
) -> None:
    """Write the bounds of all pages that hold a token from `since` on.

    keys            [batch, heads, capacity, head_dim]  contiguous
    lengths, since  [batch] int32: tokens there are, tokens whose pages had bounds before
    low, high       [batch, heads, pages, head_dim]     in the type of keys, written in place
    """
    batch, heads, capacity, dim = keys.shape
    if not (keys.is_contiguous() and low.is_contiguous() and high.is_contiguous()):
        raise ValueError("keys, low, high: found strides of a slice; needs contiguous tensors")
    warps = 4 if variant is None else variant.num_warps
    page_bounds_kernel[(low.shape[2], heads, batch)](
        *(keys, low, high, lengths, since, capacity, low.shape[2]), **bounds_fixed(heads, page, dim), num_warps=warps
    )


def page_scores(
    q: Tensor, low: Tensor, high: Tensor, lengths: Tensor, page: int, variant: Variant | None = None
) -> Tensor:
    """Scores [batch, heads, pages] float32 of pages for queries [batch, heads, group, head_dim]."""
    batch, heads, group, dim = q.shape
    pages = low.shape[2]
    if low.shape != (batch, heads, pages, dim) or high.shape != low.shape:
        found = f"{tuple(low.shape)}, {tuple(high.shape)}"
        raise ValueError(f"low, high: found {found}; needs {(batch, heads, pages, dim)}")
    chosen = WAYS[0] if variant is None else variant
    scores = torch.empty(batch, heads, pages, dtype=torch.float32, device=q.device)
    page_scores_kernel[(triton.cdiv(pages, chosen.tile("BLOCK_P")), heads, batch)](
        *(q.contiguous(), low.contiguous(), high.contiguous(), lengths, scores, pages),
        **scores_fixed(heads, group, page, dim, chosen),
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
    )
    return scores


def top_pages(scores: Tensor, budgets: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """The pages with the highest scores, ascending, at most `budgets` [heads] int32 of each head and `most` of any.

    scores   [batch, heads, pages] float32, minus infinity where empty
    returns  [batch, heads, most] int32, -1 past the last; how many [batch, heads] int32
    """
    batch, heads, pages = scores.shape
    chosen = torch.empty(batch, heads, most, dtype=torch.int32, device=scores.device)
    counts = torch.empty(batch, heads, dtype=torch.int32, device=scores.device)
    top_pages_kernel[(heads, batch)](
        *(scores.contiguous(), budgets, chosen, counts, pages, most), HEADS=heads, BLOCK=top_block(pages)
    )
    return chosen, counts


@torch.library.custom_op("planned::page_bounds", mutates_args=("low", "high"))
def page_bounds_op(keys: Tensor, lengths: Tensor, since: Tensor, low: Tensor, high: Tensor, page: int) -> None:
    """`page_bounds` as an operator that torch.compile and torch.export trace."""
    page_bounds(keys, lengths, since, low, high, page)


@torch.library.custom_op("planned::select_pages", mutates_args=())
def select_pages_op(
    q: Tensor, low: Tensor, high: Tensor, lengths: Tensor, budgets: Tensor, page: int, most: int
) -> tuple[Tensor, Tensor]:
    """`top_pages` of `page_scores` as an operator that torch.compile and torch.export trace."""
    return top_pages(page_scores(q, low, high, lengths, page), budgets, most)


@page_bounds_op.register_fake
def _(keys: Tensor, lengths: Tensor, since: Tensor, low: Tensor, high: Tensor, page: int) -> None:
    return None


@select_pages_op.register_fake
def _(
    q: Tensor, low: Tensor, high: Tensor, lengths: Tensor, budgets: Tensor, page: int, most: int
) -> tuple[Tensor, Tensor]:
    return q.new_empty(*q.shape[:2], most, dtype=torch.int32), q.new_empty(q.shape[:2], dtype=torch.int32)


def bounds_fixed(heads: int, page: int, dim: int) -> dict[str, int]:
    """What the kernel of bounds is specialised by."""
    wide = {"BLOCK_T": triton.next_power_of_2(page), "BLOCK_D": triton.next_power_of_2(dim)}
    return {"HEADS": heads, "PAGE": page, "DIM": dim, **wide}


def scores_fixed(heads: int, group: int, page: int, dim: int, variant: Variant) -> dict[str, int]:
    """What the kernel of scores is specialised by; tensor cores take 16 rows or more."""
    blocks = {
        "BLOCK_G": max(16, triton.next_power_of_2(group)),
        "BLOCK_P": variant.tile("BLOCK_P"),
        "BLOCK_D": triton.next_power_of_2(dim),
    }
    return {"HEADS": heads, "GROUP": group, "PAGE": page, "DIM": dim, **blocks}


def top_block(pages: int) -> int:
    """Pages of a tile of the selection: what four warps hold in 16 registers each at most."""
    return min(2048, max(128, triton.next_power_of_2(pages)))


# --- the search space, and what is compiled -----------------------------------------------------

WAYS = tuple(
    Variant((("BLOCK_P", pages),), warps, 1) for pages, warps in ((64, 4), (32, 4), (128, 4), (32, 2), (128, 8))
)


def variants(shape: Shape) -> tuple[Variant, ...]:
    """Pages of a tile of the scores."""
    return WAYS


def launches(shape: Shape, variant: Variant, dtype: torch.dtype = torch.float16) -> tuple[Launch, ...]:
    """Bounds of all pages, scores, and the selection."""
    batch, heads, dim, size = len(shape.lengths), len(shape.budgets), shape.head_dim, dtype.itemsize
    held = heads * sum(triton.cdiv(length, shape.page) for length in shape.lengths)
    keys = heads * sum(shape.lengths)
    places, most = batch * heads * shape.pages, max(shape.budgets)

    def launch(
        kernel: object, types: dict[str, str], fixed: dict[str, int], costs: tuple[int, int, int, int]
    ) -> Launch:
        signature = {**types, **dict.fromkeys(fixed, "constexpr")}
        aligned = tuple(name for name, kind in types.items() if kind.startswith("*"))
        return Launch(kernel, signature, dict(fixed), aligned, *costs)

    floats, ints = TYPES[dtype], "*i32"
    bounds = {"keys": floats, "low": floats, "high": floats, "lengths": ints, "since": ints}
    scores = {"q": floats, "low": floats, "high": floats, "lengths": ints, "scores": "*fp32", "pages": "i32"}
    top = {"scores": "*fp32", "budgets": ints, "chosen": ints, "counts": ints, "pages": "i32", "most": "i32"}
    tiles = triton.cdiv(shape.pages, variant.tile("BLOCK_P"))
    queries = batch * heads * shape.group * dim
    return (
        launch(
            page_bounds_kernel,
            {**bounds, "capacity": "i32", "pages": "i32"},
            bounds_fixed(heads, shape.page, dim),
            (places, keys * dim * size, 2 * held * dim * size, 2 * keys * dim),
        ),
        launch(
            page_scores_kernel,
            scores,
            scores_fixed(heads, shape.group, shape.page, dim, variant),
            (tiles * heads * batch, (queries + 2 * held * dim) * size, places * 4, 4 * held * shape.group * dim),
        ),
        launch(
            top_pages_kernel,
            top,
            {"HEADS": heads, "BLOCK": top_block(shape.pages)},
            (heads * batch, places * 4, batch * heads * (most + 1) * 4, 34 * places),
        ),
    )


# --- checking it --------------------------------------------------------------------------------


def reference(q: Tensor, keys: Tensor, lengths: Tensor, page: int, pages: int) -> tuple[Tensor, Tensor, Tensor]:
    """Bounds [batch, heads, pages, head_dim], 0 for empty pages, and scores [batch, heads, pages], in float64."""
    batch, heads, _, dim = keys.shape
    low = torch.zeros(batch, heads, pages, dim, dtype=torch.float64, device=keys.device)
    high, scores = low.clone(), torch.full((batch, heads, pages), -torch.inf, dtype=torch.float64, device=keys.device)
    for sequence, length in enumerate(lengths.tolist()):
        for number in range(-(-length // page)):
            held = keys[sequence, :, number * page : min(length, (number + 1) * page)].double()
            low[sequence, :, number], high[sequence, :, number] = held.amin(1), held.amax(1)
            x = q[sequence].double()
            bound = torch.maximum(x * low[sequence, :, number, None], x * high[sequence, :, number, None]).sum(-1)
            scores[sequence, :, number] = bound.amax(-1)
    return low, high, scores


def reference_top(scores: Tensor, budgets: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """What `top_pages` gives, by a stable sort.

    >>> reference_top(torch.tensor([[[1.0, 3.0, 3.0, -torch.inf, 2.0]]]), torch.tensor([2]), 3)
    (tensor([[[ 1,  2, -1]]], dtype=torch.int32), tensor([[2]], dtype=torch.int32))
    """
    chosen = torch.full((*scores.shape[:2], most), -1, dtype=torch.int32)
    counts = torch.zeros(scores.shape[:2], dtype=torch.int32)
    for sequence, of_heads in enumerate(scores):
        for head, row in enumerate(of_heads):
            wanted = min(int(budgets[head]), most, int((row > -torch.inf).sum()))
            best = row.sort(descending=True, stable=True).indices[:wanted].sort().values
            chosen[sequence, head, :wanted] = best.int()
            counts[sequence, head] = wanted
    return chosen, counts


def hostile() -> tuple[Shape, ...]:
    """One token; pages full, and one past; empty sequences; budgets of none and of more than there are; ties."""
    return (
        Shape(64, 3, page=16, pages=6, lengths=(1, 16, 17, 0, 96), budgets=(4, 0, 20)),
        Shape(80, 1, page=16, pages=9, lengths=(130,), budgets=(3,)),
        Shape(96, 4, page=24, pages=5, lengths=(100, 120), budgets=(2, 5)),
        Shape(128, 8, page=64, pages=3, lengths=(129,), budgets=(1, 2)),
        Shape(256, 2, page=8, pages=7, lengths=(50,), budgets=(6,)),
        Shape(64, 2, page=4, pages=20, lengths=(77,), budgets=(9, 19), equal=True),
    )


def check(shape: Shape, variant: Variant, dtype: torch.dtype, seed: int) -> tuple[Check, ...]:
    """Bounds written in one go and in two, scores, and the pages taken of these scores."""
    made = torch.Generator().manual_seed(seed)
    batch, heads, capacity = len(shape.lengths), len(shape.budgets), shape.pages * shape.page
    keys = torch.randn(batch, heads, capacity, shape.head_dim, generator=made)
    if shape.equal:
        keys = keys[:, :, : 4 * shape.page].repeat(1, 1, -(-shape.pages // 4), 1)[:, :, :capacity]
    keys = keys.to(dtype).contiguous()
    q = torch.randn(batch, heads, shape.group, shape.head_dim, generator=made).to(dtype)
    lengths = torch.tensor(shape.lengths, dtype=torch.int32)
    low, high, low_twice, high_twice = (
        torch.zeros(batch, heads, shape.pages, shape.head_dim, dtype=dtype) for _ in range(4)
    )
    none, some = torch.zeros_like(lengths), lengths // 2
    page_bounds(keys, lengths, none, low, high, shape.page, variant)
    page_bounds(keys, some, none, low_twice, high_twice, shape.page, variant)
    page_bounds(keys, lengths, some, low_twice, high_twice, shape.page, variant)
    scores = page_scores(q, low, high, lengths, shape.page, variant)
    wanted_low, wanted_high, wanted = reference(q, keys, lengths, shape.page, shape.pages)
    budgets, most = torch.tensor(shape.budgets, dtype=torch.int32), max(shape.budgets)
    held = wanted > -torch.inf
    picked = zip(top_pages(scores, budgets, most), reference_top(scores, budgets, most), strict=True)
    return (
        Check(low, wanted_low),
        Check(high, wanted_high),
        Check(low_twice, wanted_low),
        Check(high_twice, wanted_high),
        Check(scores[held], wanted[held]),
        Check((scores > -torch.inf).int(), held.int()),
        *(Check(got, right) for got, right in picked),
    )
