"""Pages and clusters of keys: bounds that no key passes, scores that are shares of attention, choices that repeat."""

import pytest
import torch

from backends.kernels import centroids, page_scores
from backends.kernels.centroids import centroid_lookup, centroid_lookup_op, clusters_of
from backends.kernels.page_scores import page_bounds, page_bounds_op, reference_top, select_pages_op, top_pages
from tests.backends.kernels.agreement import agree, cases


@pytest.mark.parametrize(("shape", "dtype"), cases(page_scores), ids=str)
def test_pages_agree_with_float64(shape: page_scores.Shape, dtype: torch.dtype) -> None:
    agree(page_scores.check(shape, page_scores.variants(shape)[0], dtype, seed=1), dtype)


@pytest.mark.parametrize(("shape", "dtype"), cases(centroids), ids=str)
def test_clusters_agree_with_float64(shape: centroids.Shape, dtype: torch.dtype) -> None:
    agree(centroids.check(shape, centroids.variants(shape)[0], dtype, seed=1), dtype)


def pages_of_keys() -> tuple[torch.Tensor, ...]:
    """q, keys, lengths and the bounds of pages of 8 tokens."""
    draw = torch.Generator().manual_seed(2)
    q, keys = torch.randn(1, 2, 3, 64, generator=draw), torch.randn(1, 2, 40, 64, generator=draw)
    low, high, lengths = torch.zeros(1, 2, 5, 64), torch.zeros(1, 2, 5, 64), torch.tensor([37], dtype=torch.int32)
    page_bounds(keys, lengths, torch.zeros_like(lengths), low, high, 8)
    return q, keys, lengths, low, high


def test_no_key_scores_above_its_page() -> None:
    q, keys, lengths, low, high = pages_of_keys()
    exact = (q @ keys.mT).amax(2)[:, :, :37]
    bound = page_scores.page_scores(q, low, high, lengths, 8).repeat_interleave(8, -1)[:, :, :37]
    assert bool((exact <= bound + 1e-4).all())


def test_more_pages_than_a_tile_holds_are_ranked_alike() -> None:
    draw = torch.Generator().manual_seed(3)
    scores = torch.randint(-40, 40, (1, 2, 2100), generator=draw) / 8
    scores[scores > 4.5] = -torch.inf
    scores[0, 0, 2000:] = torch.where(scores[0, 0, 2000:] == 0, -0.0, scores[0, 0, 2000:])
    budgets = torch.tensor([700, 2100], dtype=torch.int32)
    for got, wanted in zip(top_pages(scores, budgets, 1500), reference_top(scores, budgets, 1500), strict=True):
        assert torch.equal(got, wanted)


def test_a_cluster_of_one_key_scores_its_share_of_attention() -> None:
    draw = torch.Generator().manual_seed(4)
    q, keys = torch.randn(2, 3, 1, 64, generator=draw), torch.randn(3, 50, 64, generator=draw)
    made = clusters_of(keys, torch.randperm(50, generator=draw).expand(3, -1), 50)
    scores = centroid_lookup(q, made, 0.02, 0.125)[2]
    share = (torch.einsum("bhgd,hkd->bhgk", q, keys) * 0.125).softmax(-1)[:, :, 0]
    at_place = torch.gather(share, 2, made.members.long().expand(2, -1, -1))
    assert torch.allclose(scores.exp(), at_place, atol=1e-6)


def test_they_trace_as_operators() -> None:
    q, keys, lengths, low, high = pages_of_keys()
    tests = ("test_schema", "test_faketensor")
    since, budgets = torch.zeros_like(lengths), torch.tensor([2, 3], dtype=torch.int32)
    torch.library.opcheck(page_bounds_op, (keys, lengths, since, low, high, 8), test_utils=tests)
    torch.library.opcheck(select_pages_op, (q, low, high, lengths, budgets, 8, 3), test_utils=tests)
    made = clusters_of(keys[0], torch.arange(40).expand(2, -1) % 7, 7)
    args = (q, made.centroids, made.starts, made.members, made.owners, 0.03, 0.125)
    torch.library.opcheck(centroid_lookup_op, args, test_utils=tests)


def test_what_does_not_fit_is_refused() -> None:
    q, keys, lengths, low, high = pages_of_keys()
    with pytest.raises(ValueError, match=r"^low, high: found"):
        page_scores.page_scores(q, low[..., :32], high, lengths, 8)
    with pytest.raises(ValueError, match=r"^keys, low, high: found strides"):
        page_bounds(keys.mT, lengths, lengths, low, high, 8)
    made = clusters_of(keys[0], torch.zeros(2, 40, dtype=torch.long), 1)
    with pytest.raises(ValueError, match=r"^clusters, threshold: found"):
        centroid_lookup(q, made, 0.0, 1.0)
