"""Which keys of a fixed context a query may need, found by the centroids of their clusters.

Keys are clustered once. For a query, cluster i has the score

    S_i = exp(q . c_i) / sum over clusters j of n_j exp(q . c_j)

with centroids c and numbers of keys n: what one key at the centroid would get of the attention if all keys were at
theirs. The keys of clusters whose score passes a threshold are listed, and attention reads only those (Squeezed
Attention, https://arxiv.org/abs/2411.09688, with one level of clusters). As query heads of a group share what is
loaded, a cluster is taken where it passes for any of them. Keys are listed cluster by cluster, so results repeat.
"""

import math
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .contract import Check, Launch, Variant
from .numerics import dot

TYPES = {torch.float16: "*fp16", torch.bfloat16: "*bf16", torch.float32: "*fp32"}
CLUSTER_TILE = 512
KEY_TILE = 512


@dataclass(frozen=True)
class Shape:
    """One layer over a fixed context of `keys` tokens that all sequences share.

    clusters   of each KV head
    keep       the share of all clusters that the threshold of `check` lets pass for a single query head, about
    """

    head_dim: int
    group: int
    batch: int
    heads: int
    clusters: int
    keys: int
    keep: float = 0.2


@dataclass(frozen=True, slots=True)
class Clusters:
    """The clusters of the keys of each KV head.

    centroids  [heads, clusters, head_dim]
    starts     [heads, clusters + 1] int32: cluster i has places starts[i] to starts[i + 1] of `members`
    members    [heads, keys] int32: keys, those of a cluster beside one another
    owners     [heads, keys] int32: the cluster of each place
    """

    centroids: Tensor
    starts: Tensor
    members: Tensor
    owners: Tensor


def clusters_of(keys: Tensor, assigned: Tensor, count: int) -> Clusters:
    """Clusters of keys [heads, keys, head_dim] `assigned` [heads, keys] to `count` of them; some may be empty.

    >>> made = clusters_of(torch.tensor([[[1.0], [4.0], [3.0]]]), torch.tensor([[1, 0, 1]]), 3)
    >>> made.centroids.tolist(), made.starts.tolist(), made.members.tolist()
    ([[[4.0], [2.0], [0.0]]], [[0, 1, 3, 3]], [[1, 0, 2]])
    """
    heads, _, dim = keys.shape
    order = assigned.sort(dim=1, stable=True)
    sizes = torch.zeros(heads, count, dtype=torch.long, device=keys.device)
    sizes.scatter_add_(1, assigned, torch.ones_like(assigned))
    sums = torch.zeros(heads, count, dim, device=keys.device)
    sums.scatter_add_(1, assigned[..., None].expand(-1, -1, dim), keys.float())
    starts = torch.nn.functional.pad(sizes.cumsum(1), (1, 0))
    centroids = sums / sizes.clamp(min=1)[..., None]
    return Clusters(centroids.to(keys.dtype), starts.int(), order.indices.int(), order.values.int())


# --- kernels ------------------------------------------------------------------------------------


@triton.jit
def centroid_logits_kernel(
    q,
    centroids,
    starts,
    logits,
    tops,
    masses,
    scale,
    clusters,
    tiles,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    DIM: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """Logits [batch, HEADS, GROUP, clusters] of one tile, and its share of their sum: highest logit, mass beside it."""
    tile, head, sequence = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    row = (sequence * HEADS + head).to(tl.int64) * GROUP
    g, d = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_D)
    c = tile * BLOCK_C + tl.arange(0, BLOCK_C)
    x = tl.load(q + (row + g)[:, None] * DIM + d[None, :], (g < GROUP)[:, None] & (d < DIM)[None, :], 0.0)
    begin = tl.load(starts + head * (clusters + 1) + c, c < clusters, 0)
    size = tl.load(starts + head * (clusters + 1) + c + 1, c < clusters, 0) - begin
    at = centroids + (head.to(tl.int64) * clusters + c)[:, None] * DIM + d[None, :]
    centre = tl.load(at, (size > 0)[:, None] & (d < DIM)[None, :], 0.0)
    logit = dot(x, tl.trans(centre), tl.zeros([BLOCK_G, BLOCK_C], tl.float32)) * scale
    logit = tl.where((size > 0)[None, :], logit, float("-inf"))
    top = tl.max(logit, 1)
    base = tl.where(top == float("-inf"), 0.0, top)
    mass = tl.sum(tl.exp(logit - base[:, None]) * size[None, :].to(tl.float32), 1)
    member = g < GROUP
    tl.store(logits + (row + g)[:, None] * clusters + c[None, :], logit, member[:, None] & (c < clusters)[None, :])
    tl.store(tops + (row + g) * tiles + tile, top, member)
    tl.store(masses + (row + g) * tiles + tile, mass, member)


@triton.jit
def pass_clusters_kernel(
    logits,
    tops,
    masses,
    starts,
    scores,
    places,
    counts,
    threshold,
    clusters,
    tiles,
    HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_G: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """Log-scores of all clusters of one KV head of one sequence, and where the keys of each go in its list, or -1."""
    head, sequence = tl.program_id(0), tl.program_id(1)
    place = (sequence * HEADS + head).to(tl.int64)
    g, t, c = tl.arange(0, BLOCK_G), tl.arange(0, BLOCK_T), tl.arange(0, BLOCK_C)
    top = tl.full([BLOCK_G], float("-inf"), tl.float32)
    mass = tl.zeros([BLOCK_G], tl.float32)
    for start in range(0, tiles, BLOCK_T):
        at = (place * GROUP + g)[:, None] * tiles + start + t[None, :]
        inside = (g < GROUP)[:, None] & (start + t < tiles)[None, :]
        some = tl.load(tops + at, inside, float("-inf"))
        higher = tl.maximum(top, tl.max(some, 1))
        base = tl.where(higher == float("-inf"), 0.0, higher)
        part = tl.load(masses + at, inside, 0.0) * tl.exp(some - base[:, None])
        mass = mass * tl.exp(top - base) + tl.sum(part, 1)
        top = higher
    whole = tl.where(mass > 0, top + tl.log(tl.where(mass > 0, mass, 1.0)), 0.0)
    count = 0
    for start in range(0, clusters, BLOCK_C):
        inside = start + c < clusters
        at = (place * GROUP + g)[:, None] * clusters + start + c[None, :]
        logit = tl.load(logits + at, (g < GROUP)[:, None] & inside[None, :], float("-inf"))
        score = tl.max(logit - whole[:, None], 0)
        begin = tl.load(starts + head * (clusters + 1) + start + c, inside, 0)
        size = tl.load(starts + head * (clusters + 1) + start + c + 1, inside, 0) - begin
        taken = tl.where((score > threshold) & (size > 0), size, 0)
        before = count + tl.cumsum(taken, 0) - taken
        tl.store(scores + place * clusters + start + c, score, inside)
        tl.store(places + place * clusters + start + c, tl.where(taken > 0, before, -1), inside)
        count += tl.sum(taken, 0)
    tl.store(counts + place, count)


@triton.jit
def list_keys_kernel(
    places, starts, members, owners, counts, listed, keys, clusters, HEADS: tl.constexpr, BLOCK: tl.constexpr
):
    """The keys of clusters that passed, to their places in the list; -1 past the last."""
    head, sequence = tl.program_id(1), tl.program_id(2)
    place = (sequence * HEADS + head).to(tl.int64)
    n = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = n < keys
    owner = tl.load(owners + head * keys + n, inside, 0)
    first = tl.load(places + place * clusters + owner, inside, -1)
    taken = inside & (first >= 0)
    begin = tl.load(starts + head * (clusters + 1) + owner, taken, 0)
    tl.store(listed + place * keys + first + n - begin, tl.load(members + head * keys + n, taken, 0), taken)
    tl.store(listed + place * keys + n, -1, inside & (n >= tl.load(counts + place)))


# --- running it ---------------------------------------------------------------------------------


def centroid_lookup(
    q: Tensor, made: Clusters, threshold: float, scale: float, variant: Variant | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """The keys that queries [batch, heads, group, head_dim] may need.

    threshold  of S_i, above which a cluster is taken
    scale      of the logits
    returns    keys [batch, heads, keys] int32, -1 past the last; how many [batch, heads] int32; the log of the greatest
               S_i of a group [batch, heads, clusters] float32, minus infinity where a cluster is empty
    """
    batch, heads, group, dim = q.shape
    clusters, keys = made.centroids.shape[1], made.members.shape[1]
    wanted = ((heads, clusters, dim), (heads, clusters + 1), (heads, keys), (heads, keys))
    found = tuple(tuple(part.shape) for part in (made.centroids, made.starts, made.members, made.owners))
    if found != wanted or not threshold > 0:
        raise ValueError(f"clusters, threshold: found {found}, {threshold}; needs {wanted} and one above 0")
    chosen = WAYS[0] if variant is None else variant
    tiles = triton.cdiv(clusters, chosen.tile("BLOCK_C"))
    floats = {"dtype": torch.float32, "device": q.device}
    logits = torch.empty(batch, heads, group, clusters, **floats)
    tops, masses = (torch.empty(batch, heads, group, tiles, **floats) for _ in range(2))
    scores = torch.empty(batch, heads, clusters, **floats)
    places = torch.empty(batch, heads, clusters, dtype=torch.int32, device=q.device)
    counts = torch.empty(batch, heads, dtype=torch.int32, device=q.device)
    listed = torch.empty(batch, heads, keys, dtype=torch.int32, device=q.device)
    first, second, third = fixed_of(heads, group, dim, chosen)
    centroid_logits_kernel[(tiles, heads, batch)](
        *(q.contiguous(), made.centroids.contiguous(), made.starts, logits, tops, masses, scale, clusters, tiles),
        **first,
        num_warps=chosen.num_warps,
        num_stages=chosen.num_stages,
    )
    pass_clusters_kernel[(heads, batch)](
        *(logits, tops, masses, made.starts, scores, places, counts, math.log(threshold), clusters, tiles), **second
    )
    list_keys_kernel[(triton.cdiv(keys, KEY_TILE), heads, batch)](
        *(places, made.starts, made.members, made.owners, counts, listed, keys, clusters), **third
    )
    return listed, counts, scores


@torch.library.custom_op("planned::centroid_lookup", mutates_args=())
def centroid_lookup_op(
    q: Tensor, centroids: Tensor, starts: Tensor, members: Tensor, owners: Tensor, threshold: float, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    """`centroid_lookup` as an operator that torch.compile and torch.export trace."""
    return centroid_lookup(q, Clusters(centroids, starts, members, owners), threshold, scale)


@centroid_lookup_op.register_fake
def _(
    q: Tensor, centroids: Tensor, starts: Tensor, members: Tensor, owners: Tensor, threshold: float, scale: float
) -> tuple[Tensor, Tensor, Tensor]:
    batch, heads = q.shape[:2]
    return (
        q.new_empty(batch, heads, members.shape[1], dtype=torch.int32),
        q.new_empty(batch, heads, dtype=torch.int32),
        q.new_empty(batch, heads, centroids.shape[1], dtype=torch.float32),
    )


def fixed_of(
    heads: int, group: int, dim: int, variant: Variant
) -> tuple[dict[str, int], dict[str, int], dict[str, int]]:
    """What the three kernels are specialised by."""
    rows = triton.next_power_of_2(group)
    common = {"HEADS": heads, "GROUP": group}
    logits = {"DIM": dim, "BLOCK_G": max(16, rows), "BLOCK_C": variant.tile("BLOCK_C")}
    passing = {"BLOCK_G": rows, "BLOCK_C": CLUSTER_TILE, "BLOCK_T": 32}
    return (
        common | logits | {"BLOCK_D": triton.next_power_of_2(dim)},
        common | passing,
        {"HEADS": heads, "BLOCK": KEY_TILE},
    )


# --- the search space, and what is compiled -----------------------------------------------------

WAYS = tuple(Variant((("BLOCK_C", block),), warps, 1) for block, warps in ((64, 4), (32, 4), (128, 4), (128, 8)))


def variants(shape: Shape) -> tuple[Variant, ...]:
    """Centroids of a tile."""
    return WAYS


def launches(shape: Shape, variant: Variant, dtype: torch.dtype = torch.float16) -> tuple[Launch, ...]:
    """Logits, the clusters that pass, and the list of their keys, were all of them taken."""
    pairs, groups = shape.batch * shape.heads, shape.batch * shape.heads * shape.group
    tiles = triton.cdiv(shape.clusters, variant.tile("BLOCK_C"))
    starts, keys = 4 * shape.heads * (shape.clusters + 1), shape.heads * shape.keys
    ints, floats = "*i32", "*fp32"
    sizes = {"clusters": "i32", "tiles": "i32"}
    logits = {"q": TYPES[dtype], "centroids": TYPES[dtype], "starts": ints, "logits": floats, "tops": floats}
    passing = {"logits": floats, "tops": floats, "masses": floats, "starts": ints, "scores": floats, "places": ints}
    listing = dict.fromkeys(("places", "starts", "members", "owners", "counts", "listed"), ints)
    vectors = (groups + shape.heads * shape.clusters) * shape.head_dim * dtype.itemsize
    held, sums = 4 * groups * shape.clusters, 8 * groups * tiles
    kernels = (centroid_logits_kernel, pass_clusters_kernel, list_keys_kernel)
    types = (
        {**logits, "masses": floats, "scale": "fp32", **sizes},
        {**passing, "counts": ints, "threshold": "fp32", **sizes},
        {**listing, "keys": "i32", "clusters": "i32"},
    )
    costs = (
        (tiles * pairs, vectors + starts, held + sums, 2 * groups * shape.clusters * shape.head_dim),
        (pairs, held + sums + starts, 8 * pairs * shape.clusters + 4 * pairs, 2 * groups * shape.clusters),
        (
            triton.cdiv(shape.keys, KEY_TILE) * pairs,
            8 * keys + 4 * pairs * (shape.clusters + 1) + starts,
            4 * pairs * shape.keys,
            0,
        ),
    )
    return tuple(
        Launch(
            kernel,
            {**signature, **dict.fromkeys(fixed, "constexpr")},
            dict(fixed),
            tuple(name for name, kind in signature.items() if kind.startswith("*")),
            *cost,
        )
        for kernel, signature, fixed, cost in zip(
            kernels, types, fixed_of(shape.heads, shape.group, shape.head_dim, variant), costs, strict=True
        )
    )


# --- checking it --------------------------------------------------------------------------------


def reference(q: Tensor, made: Clusters, scale: float) -> Tensor:
    """The log of the greatest S_i of a group, [batch, heads, clusters] in float64; minus infinity where empty."""
    sizes = made.starts.diff(dim=1).double()
    logits = torch.einsum("bhgd,hcd->bhgc", q.double(), made.centroids.double()) * scale
    logits = logits.masked_fill(sizes[None, :, None] == 0, -torch.inf)
    whole = (logits + sizes.log()[None, :, None]).logsumexp(-1, keepdim=True)
    return (logits - whole).amax(2)


def reference_list(scores: Tensor, made: Clusters, threshold: float) -> tuple[Tensor, Tensor]:
    """The list of keys, and how many, that log-scores [batch, heads, clusters] give, by plain loops."""
    batch, heads, _ = scores.shape
    listed = torch.full((batch, heads, made.members.shape[1]), -1, dtype=torch.int32)
    counts = torch.zeros(batch, heads, dtype=torch.int32)
    limit = torch.tensor(math.log(threshold), dtype=torch.float32)
    for sequence in range(batch):
        for head in range(heads):
            starts = made.starts[head].tolist()
            taken = (scores[sequence, head] > limit).nonzero().flatten().tolist()
            runs = [made.members[head, starts[i] : starts[i + 1]] for i in taken]
            found = torch.cat(runs) if runs else made.members[head, :0]
            listed[sequence, head, : len(found)] = found
            counts[sequence, head] = len(found)
    return listed, counts


def hostile() -> tuple[Shape, ...]:
    """One cluster; more clusters than keys, so that some are empty; nothing taken; all taken; odd sizes."""
    return (
        Shape(64, 3, batch=2, heads=2, clusters=70, keys=600),
        Shape(80, 1, batch=1, heads=1, clusters=1, keys=5),
        Shape(96, 4, batch=1, heads=2, clusters=90, keys=40),
        Shape(128, 8, batch=1, heads=1, clusters=33, keys=513, keep=0.0),
        Shape(256, 2, batch=2, heads=1, clusters=600, keys=1100, keep=1.0),
    )


def check(shape: Shape, variant: Variant, dtype: torch.dtype, seed: int) -> tuple[Check, ...]:
    """Scores against the reference, and the keys listed against those that these scores give."""
    made = torch.Generator().manual_seed(seed)
    keys = torch.randn(shape.heads, shape.keys, shape.head_dim, generator=made).to(dtype)
    assigned = torch.randint(0, shape.clusters, (shape.heads, shape.keys), generator=made)
    found = clusters_of(keys, assigned, shape.clusters)
    q = torch.randn(shape.batch, shape.heads, shape.group, shape.head_dim, generator=made).to(dtype)
    scale = shape.head_dim**-0.5
    wanted = reference(q, found, scale)
    held = wanted > -torch.inf
    logs = wanted[held]
    lowest, highest = float(logs.min()) - 1, float(logs.max()) + 1
    between = float(logs.quantile(1 - shape.keep))
    threshold = math.exp(between if 0 < shape.keep < 1 else highest if shape.keep == 0 else lowest)
    listed, counts, scores = centroid_lookup(q, found, threshold, scale, variant)
    right, many = reference_list(scores, found, threshold)
    return Check(scores[held], logs), Check(listed, right), Check(counts, many)
