"""Price every option of every site in nats with one set of backward passes.

KL(dense || changed) has no gradient at the dense model and the Fisher matrix as its Hessian. So: draw labels from the
model's own predictions, backpropagate their log-likelihood to every site at once, and for each option take the inner
product c of that gradient with the change the option makes to the site's output on the dense inputs. With independent
draws the cross terms between positions vanish in expectation, and KL ~= mean over draws of c^2 / (2 * scored tokens).
All options of all sites share the draws, so differences between options are sharper than their levels.

The square of a sum over thousands of positions has the spread of a chi-square with one degree of freedom, so it takes
many draws. Positions far apart contribute almost independently, though: the sum of squares over blocks of positions is
nearly the same mean with as many degrees of freedom as blocks. `KvProducts.losses` uses it for each site, scaled by the
ratio of the two over all sites, which many sites make certain.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BLOCK = 256
"""Queries whose attention rows are held at a time, and whose part of an inner product is squared by itself."""

NARROW = 64
"""Queries that share their keys under a window of up to BLOCK tokens."""


@dataclass(frozen=True)
class Options:
    """The options of one KV head: spans (None keeps everything), and keys and values as each format reads back.

    keys, values  one [tokens, head_dim] for each format, protected sinks already exact
    """

    windows: tuple[int | None, ...]
    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]
    sinks: int
    reach: int | None


@dataclass(frozen=True)
class KvProducts:
    """Inner products of gradients with the changes that options make, block of positions by block.

    by_key    [..., draws, blocks, windows, keys]    this span and key format, values exact
    by_value  [..., draws, blocks, windows, values]  what a value format adds, under this span with exact keys

    The product of a whole option is their sum, up to the product of the two errors.
    """

    by_key: Tensor
    by_value: Tensor

    def losses(self, scored: int) -> Tensor:
        """Loss in nats per token by draw: [sites, draws, windows, keys, values], from products with a leading sites."""
        each = self.by_key[..., None] + self.by_value[..., None, :]
        whole = each.sum(2).square().sum((0, 1))
        blocks = each.square().sum(2)
        ratio = whole / blocks.sum((0, 1)).clamp_min(1e-300)
        return blocks * ratio / (2 * scored)


def option_products(q: Tensor, k: Tensor, v: Tensor, gradient: Tensor, scale: float, options: Options) -> KvProducts:
    """Inner products of each draw's gradient with each option's change to one head's attention output.

    q         [group, tokens, head_dim]
    k, v      [tokens, head_dim]
    gradient  [draws, group, tokens, head_dim]
    """
    tokens, draws = q.shape[1], len(gradient)
    blocks = -(-tokens // BLOCK)
    by_key = torch.zeros(draws, blocks, len(options.windows), len(options.keys), dtype=torch.float64)
    by_value = torch.zeros(draws, blocks, len(options.windows), len(options.values), dtype=torch.float64)
    errors = torch.cat([value - v for value in options.values], 1)  # one matmul for all formats
    for b, start in enumerate(range(0, tokens, BLOCK)):
        block = range(start, min(start + BLOCK, tokens))
        rows, toward = q[:, block.start : block.stop] * scale, gradient[:, :, block.start : block.stop]
        within = _columns(k, block, None, options), _columns(v, block, None, options)
        dense = _chances(rows @ within[0].T, _sees(block, None, options)) @ within[1]
        for w, window in enumerate(options.windows):
            for part in _parts(block, window):
                inside = slice(part.start - block.start, part.stop - block.start)
                sees, few, target = _sees(part, window, options), rows[:, inside], toward[:, :, inside]
                chances = _chances(few @ _columns(k, part, window, options).T, sees)
                change = (chances @ _columns(errors, part, window, options)).unflatten(-1, (len(options.values), -1))
                by_value[:, b, w] += torch.einsum("jgtd,gtvd->jv", target, change).double()
                held = _columns(v, part, window, options)
                for i, keys in enumerate(options.keys):
                    out = _chances(few @ _columns(keys, part, window, options).T, sees) @ held
                    by_key[:, b, w, i] += (target * (out - dense[:, inside])).sum((1, 2, 3)).double()
    return KvProducts(by_key, by_value)


def _parts(block: range, window: int | None) -> Iterator[range]:
    """A block of queries, cut into narrow ones where a window makes wide ones wasteful."""
    size = NARROW if window is not None and window <= BLOCK else BLOCK
    return (range(at, min(at + size, block.stop)) for at in range(block.start, block.stop, size))


def _first(part: range, window: int | None, options: Options) -> tuple[int, int]:
    """Protected sinks, and the first other key, that some query of a part may see under a window of coded tokens."""
    reach = part.start - options.reach + 1 if options.reach is not None else 0
    if window is None or window + options.sinks >= part.stop:
        return 0, max(0, reach)
    return options.sinks, max(options.sinks, reach, part.start - window + 1)


def _columns(x: Tensor, part: range, window: int | None, options: Options) -> Tensor:
    """The rows of [tokens, ...] that some query of a part may see."""
    sinks, first = _first(part, window, options)
    return torch.cat([x[:sinks], x[first : part.stop]]) if sinks else x[first : part.stop]


def _sees(part: range, window: int | None, options: Options) -> Tensor:
    """Which of those rows each query of a part sees: [queries, columns]."""
    sinks, first = _first(part, window, options)
    keys = torch.cat([torch.arange(sinks), torch.arange(first, part.stop)])
    now = torch.arange(part.start, part.stop)[:, None]
    sees = keys <= now
    if options.reach is not None:
        sees &= keys > now - options.reach
    return sees if window is None else sees & ((keys < options.sinks) | (keys > now - window))


def _chances(scores: Tensor, sees: Tensor) -> Tensor:
    return scores.masked_fill(~sees, -torch.inf).softmax(-1)


def recent_mass(q: Tensor, k: Tensor, scale: float, options: Options) -> Tensor:
    """Mean share of one head's attention on the sinks and the newest tokens, by window: [windows].

    Averaged over query heads and over the second half of the positions, where a window binds.
    """
    tokens = q.shape[1]
    shares = torch.zeros(len(options.windows), dtype=torch.float64)
    for start in range(tokens // 2, tokens, BLOCK):
        block = range(start, min(start + BLOCK, tokens))
        within = _chances(
            (q[:, block.start : block.stop] * scale) @ _columns(k, block, None, options).T, _sees(block, None, options)
        )
        mass = torch.nn.functional.pad(within, (block.stop - within.shape[-1], 0))  # beyond its reach a layer sees none
        for w, window in enumerate(options.windows):
            sees = _sees(block, window, options)
            held = _columns(mass.permute(2, 0, 1), block, window, options)
            shares[w] += (held * sees.T[:, None]).sum().double()
    return shares / (q.shape[0] * (tokens - tokens // 2))


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
