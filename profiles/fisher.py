"""Price every option of every site in nats with one set of backward passes.

KL(dense || changed) has no gradient at the dense model and the Fisher matrix as its Hessian. So: draw labels from the
model's own predictions, backpropagate their log-likelihood to every site at once, and for each option take the inner
product c of that gradient with the change the option makes to the site's output on the dense inputs. With independent
draws the cross terms between positions vanish in expectation, and KL ~= mean over draws of c^2 / (2 * scored tokens).
All options of all sites share the draws, so differences between options are sharper than their levels.

The square of a sum over thousands of positions has the spread of a chi-square with one degree of freedom, so it takes
many draws. Positions contribute almost independently, though: the sum of squares over short blocks of positions is
nearly the same mean with as many degrees of freedom as blocks. `losses` uses it for each site, scaled by the ratio of
the two over all sites and documents of a length, which many of both make certain.

Only what changes at scored positions is taken. What an option does to earlier ones reaches the scored ones through
later layers alone: of all squares a twentieth (SmolLM2-135M, second half of 2,048 tokens scored) lies there.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

PART = 64
"""Queries whose attention rows are held at a time."""

SQUARED = 16
"""Positions whose part of an inner product is squared by itself; divides PART."""


@dataclass(frozen=True)
class Options:
    """The options of one KV head: spans, and keys and values as each format reads back.

    windows       rising, None at the end: it keeps everything
    keys, values  one [tokens, head_dim] for each format, protected sinks already exact; what is the head's own tensor
                  changes nothing and takes no time
    """

    windows: tuple[int | None, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    sinks: int
    reach: int | None


@dataclass(frozen=True)
class KvProducts:
    """Inner products of gradients with the changes that options make, SQUARED scored positions by SQUARED.

    by_key    [..., draws, blocks, windows, keys]    this span and key format, values exact
    by_value  [..., draws, blocks, windows, values]  what a value format adds, under this span with exact keys

    The product of a whole option is their sum, up to the product of the two errors.
    """

    by_key: Tensor
    by_value: Tensor

    def squares(self) -> "Squares":
        """From products with a leading sites."""
        shape = (*self.by_key.shape[:2], *self.by_key.shape[3:], self.by_value.shape[-1])
        blocks = torch.empty(shape, dtype=torch.float64)
        whole = torch.zeros(shape[2:], dtype=torch.float64)
        for site, (by_key, by_value) in enumerate(zip(self.by_key, self.by_value, strict=True)):
            each = by_key.double()[..., None] + by_value.double()[..., None, :]
            blocks[site] = each.square().sum(1)
            whole += each.sum(1).square().sum(0)
        return Squares(blocks, whole)


@dataclass(frozen=True)
class Squares:
    """Squared products of whole options on a document.

    blocks  [sites, draws, windows, keys, values]  the sum over blocks of the square of each
    whole   [windows, keys, values]                the square of the sum over blocks, of all sites and draws
    """

    blocks: Tensor
    whole: Tensor


def losses(documents: Sequence[Squares], scored: int) -> Tensor:
    """Loss in nats per token by draw, from documents of one length of which so many positions are scored: [sites, draws
    of all documents, windows, keys, values]."""
    blocks = torch.cat([document.blocks for document in documents], 1)
    whole = torch.stack([document.whole for document in documents]).sum(0)
    return blocks * (whole / blocks.sum((0, 1)).clamp_min(1e-300)) / (2 * scored)


def option_products(
    q: Tensor, k: Tensor, v: Tensor, gradient: Tensor, scale: float, options: Options, scored: int
) -> tuple[KvProducts, Tensor]:
    """Inner products of each draw's gradient with each option's change to one head's attention output, at the last
    `scored` positions; and the mean share there of the head's attention that lies in each window, [windows].

    q         [group, tokens, head_dim]
    k, v      [tokens, head_dim]
    gradient  [draws, group, tokens, head_dim]
    """
    tokens, dim, draws, windows = q.shape[1], v.shape[1], len(gradient), len(options.windows)
    blocks = -(-scored // SQUARED)
    by_key = q.new_zeros(draws, blocks, windows, len(options.keys))
    by_value = q.new_zeros(draws, blocks, windows, len(options.values))
    mass = torch.zeros(windows, dtype=torch.float64)
    coded = [i for i, values in enumerate(options.values) if values is not v]
    held = torch.cat([v, *(options.values[i] - v for i in coded)], 1)  # one matmul for all formats
    first = tokens - scored
    for start in range(first, tokens, PART):
        part = range(start, min(start + PART, tokens))
        seen, rows = _seen(part, options), q[:, part.start : part.stop] * scale
        toward = gradient[:, :, part.start : part.stop]
        into = slice((start - first) // SQUARED, -((first - part.stop) // SQUARED))
        exact, shares = _attended(rows, k, held, seen)
        mass += shares.sum((1, 2)).double()
        dense = exact[-1, ..., :dim]
        spans = exact[..., :dim] - dense
        added = torch.einsum("jgtd,wgtvd->jtwv", toward, exact[..., dim:].unflatten(-1, (-1, dim)))
        by_value[:, into, :, coded] = _squared(added.flatten(2)).unflatten(2, added.shape[2:])
        for i, keys in enumerate(options.keys):
            change = spans if keys is k else _attended(rows, keys, v, seen)[0] - dense
            by_key[:, into, :, i] = _squared(torch.einsum("jgtd,wgtd->jtw", toward, change))
    return KvProducts(by_key, by_value), mass / (len(q) * scored)


def _squared(by_position: Tensor) -> Tensor:
    """Sums over SQUARED positions, fewer at the end: [draws, positions, n] -> [draws, blocks, n]."""
    padded = torch.nn.functional.pad(by_position, (0, 0, 0, -by_position.shape[1] % SQUARED))
    sums: Tensor = padded.unflatten(1, (-1, SQUARED)).sum(2)
    return sums


@dataclass(frozen=True)
class _Seen:
    """The keys that a part of the queries sees, and those that each window adds to the one before it.

    columns  from the first key that any of the queries sees to the last
    able     [queries, columns] where a query sees a key if everything is kept
    sinks    how many columns, from the first, every window keeps
    added    for each window some of the columns, and 1 where it adds one to a query's: [queries, some]
    """

    columns: slice
    able: Tensor
    sinks: int
    added: tuple[tuple[slice, Tensor], ...]


def _seen(part: range, options: Options) -> _Seen:
    low = 0 if options.reach is None else max(0, part.start - options.reach + 1)
    now, keys = torch.arange(part.start, part.stop)[:, None], torch.arange(low, part.stop)
    able = keys <= now
    if options.reach is not None:
        able &= keys > now - options.reach
    sinks, added, smaller = max(0, options.sinks - low), [], 0
    for window in options.windows:
        oldest = low if window is None else max(low, part.start - window + 1)
        start = max(oldest - low, sinks)
        some = slice(start, max(start, part.stop - smaller - low))
        new = keys[some] <= now - smaller
        if window is not None:
            new &= keys[some] > now - window
            smaller = window
        added.append((some, new.float()))
    return _Seen(slice(low, part.stop), able, sinks, tuple(added))


def _attended(rows: Tensor, keys: Tensor, held: Tensor, seen: _Seen) -> tuple[Tensor, Tensor]:
    """What queries [group, queries, head_dim] find in `held` in each window, [windows, group, queries, held_dim], and
    the share of the whole attention that lies in it, [windows, group, queries].

    Windows lie within one another, so each key is weighed once and what a window adds is added up.
    """
    held = held[seen.columns]
    scores = (rows @ keys[seen.columns].T).masked_fill_(~seen.able, -torch.inf)
    weights = scores.sub_(scores.amax(-1, keepdim=True)).exp_()
    total = weights[..., : seen.sinks] @ held[: seen.sinks]
    mass = weights[..., : seen.sinks].sum(-1, keepdim=True)
    outs, masses = [], []
    for some, added in seen.added:
        within = weights[..., some] * added.to(weights.dtype)
        total = total + within @ held[some]
        mass = mass + within.sum(-1, keepdim=True)
        # Nothing is left of a window whose keys all weigh e^-87 of the largest.
        outs.append(total / mass.clamp_min(torch.finfo(mass.dtype).tiny))
        masses.append(mass[..., 0])
    return torch.stack(outs), torch.stack(masses) / masses[-1]


def mean_and_error(squares: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean over draws (the first axis) and its standard error.

    >>> mean, error = mean_and_error(np.array([1.0, 3.0]))
    >>> float(mean), float(error)
    (2.0, 1.0)

    A single draw shows no spread; the square of a normal number has one of sqrt(2) times its mean.

    >>> [round(float(x), 3) for x in mean_and_error(np.array([1.0]))]
    [1.0, 1.414]
    """
    if len(squares) == 1:
        return squares[0], squares[0] * np.sqrt(2)
    return squares.mean(0), squares.std(0, ddof=1) / np.sqrt(len(squares))
