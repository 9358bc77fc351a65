"""Unbiased N:M sampling of gradients, with the least variance there can be.

To keep a value with probability p and emit x / p is unbiased, with variance
x^2 (1 / p - 1). Under "at most N of M are kept" the sum of variances is least where p
is proportional to |x|, as far as no p exceeds 1.

Source: Chmiel et al., ICLR 2023 (arXiv 2203.10991). The paper gives 1:2 and 2:4 case by
case; systematic sampling realises the optimum for any N:M with one random number.
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from step_cli.errors import UsageError
from step_cli.nm.pattern import NMPattern
from step_cli.optim.mask import check_groups, to_groups

Sampling = Literal["optimal", "approximate", "off"]


def mvue(
    values: Tensor, pattern: NMPattern, axis: int, draw: Tensor | None = None
) -> Tensor:
    """Sample at most N of each M values, so that the expectation is ``values``.

    Args:
        values: Any floating tensor.
        pattern: The N:M pattern.
        axis: The group axis.
        draw: One uniform number in [0, 1) per group, in row-major order of the groups;
            None: drawn from torch's generator.

    Returns:
        A tensor like ``values`` with at most N non-zeros in each group.

    Raises:
        UsageError: The axis does not exist, or its size is not a multiple of M.
    """
    check_groups(tuple(values.shape), pattern, axis)
    if pattern.dense:
        return values
    groups = to_groups(values, pattern.m, axis)
    work = groups.double() if groups.dtype == torch.float64 else groups.float()
    chances = keep_chances(work.abs(), pattern.n)
    if draw is None:
        shape = (groups.shape[0], groups.shape[2])
        draw = torch.rand(shape, dtype=work.dtype, device=work.device)
    draw = draw.to(work.dtype).view(groups.shape[0], 1, groups.shape[2])
    # Systematic sampling: keep what the points draw, draw + 1, ... fall into. N ends
    # the last interval, or rounding could let one point more in.
    ends = chances.cumsum(1).clamp_(max=pattern.n)
    points = (ends - draw).ceil_()
    first = torch.zeros_like(points[:, :1])
    kept = points.diff(dim=1, prepend=first) > 0
    sampled = torch.where(kept & (chances > 0), work / chances, 0)
    return sampled.to(values.dtype).view(values.shape)


def keep_chances(magnitude: Tensor, n: int) -> Tensor:
    """The optimum: min(1, c |x|) with c such that a group's sum is N.

    Args:
        magnitude: ``[X, M, B]``, at least fp32, groups along the middle.
        n: How many are kept; fewer where fewer are not zero.
    """
    largest = magnitude.amax(1, keepdim=True)
    # Scaled, so that neither sums nor quotients overflow; nothing that is not zero
    # becomes zero or so small that N divided by it would overflow.
    share = magnitude / torch.where(largest > 0, largest, 1)
    lowest = 64 * torch.finfo(share.dtype).tiny
    share = torch.where(magnitude > 0, share.clamp(min=lowest), share)
    capped = torch.zeros_like(share, dtype=torch.bool)
    chances = share
    for _ in range(n):  # each round caps one more at least, or nothing any more
        rest = torch.where(capped, 0, share)
        total = rest.sum(1, keepdim=True)
        left = n - capped.sum(1, keepdim=True)
        scale = left / torch.where(total > 0, total, 1)
        chances = torch.where(capped, 1, rest * scale)
        capped = (chances >= 1) & (share > 0)
    return chances.clamp_(max=1)


def approximate_mvue(values: Tensor, axis: int, draws: Tensor | None = None) -> Tensor:
    """Sample 2 of 4 as the kernels of S-STE and T-SR-STE do: near the optimum.

    Unbiased: two draws without replacement ~ |x|. Its variance is a little higher
    (20.47 against 20 for 1, 2, 3, 4): kept to reproduce those papers.

    Args:
        values: Any floating tensor.
        axis: The group axis.
        draws: Two uniform numbers per group, ``[2, groups]``; None: drawn.

    Raises:
        UsageError: The axis does not exist, or its size is not a multiple of 4.
    """
    check_groups(tuple(values.shape), NMPattern(2, 4), axis)
    groups = to_groups(values, 4, axis).movedim(1, -1)  # [X, B, 4]
    work = groups.double() if groups.dtype == torch.float64 else groups.float()
    # The kernels' offset: two non-zeros at least, so that both draws have a target.
    size = work.abs() + 1.19e-7
    if draws is None:
        draws = torch.rand((2, *size.shape[:2]), dtype=size.dtype, device=size.device)
    one, two = draws.to(size.dtype).view(2, *size.shape[:2], 1)
    first = _draw(size, one)
    second = _draw(size.masked_fill(first, 0), two)
    sampled = torch.where(first | second, work / pair_chances(size), 0)
    return sampled.movedim(-1, 1).reshape(values.shape).to(values.dtype)


def pair_chances(size: Tensor) -> Tensor:
    """Chance of each to be among two draws without replacement; ``[..., 4]``."""
    # Sums over the others, not total - size: that is 0 where one is far the largest.
    others = 1 - torch.eye(4, dtype=size.dtype, device=size.device)
    alone = size / size.sum(-1, keepdim=True)
    return alone + size * ((alone / (size @ others)) @ others)


def _draw(size: Tensor, draw: Tensor) -> Tensor:
    """Mark one of each last dimension, in proportion to ``size``."""
    ends = size.cumsum(-1)
    place = (ends <= draw * ends[..., -1:]).sum(-1, keepdim=True)
    # Rounding may put a draw at the very end, or on one that must not be drawn.
    place = place.clamp_(max=size.shape[-1] - 1)
    return torch.zeros_like(size, dtype=torch.bool).scatter_(-1, place, True)


def sample_tokens(
    grad: Tensor, pattern: NMPattern, *, approximate: bool = False
) -> Tensor:
    """Sample a gradient ``[out, tokens]`` along its tokens, for the weight's gradient.

    Tokens are filled up with zeros to a multiple of M, which stay zero and are cut off.
    """
    tokens = grad.shape[1]
    padded = functional.pad(grad, (0, -tokens % pattern.m))
    if approximate:
        return approximate_mvue(padded, 1)[:, :tokens]
    return mvue(padded, pattern, 1)[:, :tokens]


def token_sampler(
    kind: Sampling, pattern: NMPattern
) -> Callable[[Tensor], Tensor] | None:
    """What an option of recipes names; None where nothing is to be sampled.

    Raises:
        UsageError: The approximation is given another pattern than 2:4.
    """
    if kind == "off" or pattern.dense:
        return None
    if kind == "approximate" and pattern != NMPattern(2, 4):
        raise UsageError(f"mvue 'approximate' is for 2:4, not {pattern}: use 'optimal'")
    return partial(sample_tokens, pattern=pattern, approximate=kind == "approximate")
