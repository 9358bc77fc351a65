"""The mask and the frozen-variance update, compiled where a compiler exists.

Masks are bit-identical to `mask.py`; the update differs from `adam.py` by rounding,
about 1e-7. The forms were chosen by measuring on a CPU: ranks in 32-bit integers; where
groups lie along the last axis a mask of bytes, applied to the bits of the weights;
elsewhere the weights written directly, and masks without a compiler, as storing single
bytes is slow; the update as one flat pass.

Functions are compiled once for all sizes. The first call takes seconds, so it pays from
tens of millions of weights on.
"""

import functools
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from step_cli.core.mask import magnitude_mask, to_groups
from step_cli.core.pattern import NMPattern

logger = logging.getLogger(__name__)

PAIRS_UP_TO = 8  # M; the graph of pairs grows with its square, that of a loop with it


@functools.cache
def can_compile() -> bool:
    """Whether ``torch.compile`` works here; tried once, and said if it does not."""
    codes = torch.ones(8, dtype=torch.int8)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, when it is first imported
            torch.compile(_apply, dynamic=True)(torch.empty(8), torch.ones(8), codes)
    except Exception as error:  # a missing compiler raises of every kind
        kind = type(error).__name__
        logger.info("no compiled kernels here (%s), going on without", kind)
        return False
    return True


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` compiled once, for tensors of all sizes."""
    made: Callable[..., Any] = torch.compile(function, dynamic=True)
    return made


def compiled_keep_mask(weight: Tensor, pattern: NMPattern, axis: int) -> Tensor:
    """``mask.magnitude_mask`` of fp32 or fp64 weights."""
    groups, n = to_groups(weight, pattern.m, axis), _count(pattern, weight.device)
    if groups.shape[2] > 1 and weight.device.type == "cpu":
        return magnitude_mask(weight, pattern, axis)
    if pattern.m <= PAIRS_UP_TO:
        kept: Tensor = compiled(_pair_mask)(groups, n)
    elif pattern.n == 1 and pattern.m % 4 == 0 and groups.shape[2] == 1:
        kept = compiled(_highest_words)(groups).view(torch.bool)
    else:
        kept = compiled(_loop_bytes)(groups, n).view(torch.bool)
    return kept.view(weight.shape)


def compiled_project(p: Tensor, dense: Tensor, pattern: NMPattern, axis: int) -> None:
    """Write ``dense`` into ``p`` where it is among the N largest of its group, else 0.

    Args:
        p: Parameter of the dtype of ``dense``, contiguous.
        dense: fp32, contiguous.
        pattern: The N:M pattern.
        axis: The group axis.
    """
    groups, n = to_groups(dense, pattern.m, axis), _count(pattern, dense.device)
    if groups.shape[2] > 1 and pattern.m <= PAIRS_UP_TO:
        members = to_groups(p, pattern.m, axis).unbind(1)
        compiled(_project_pairs)(members, groups, n)
        return
    codes = compiled_keep_mask(dense, pattern, axis).view(torch.int8)
    compiled(_apply)(p.view(-1), dense.view(-1), codes.view(-1))


def compiled_frozen_step(
    weight: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    variance: Tensor,
    scalars: dict[str, Tensor],
) -> None:
    """Adam's step under a frozen variance, eps outside the root; in place.

    Args:
        weight: Dense weights, fp32, contiguous.
        grad: Like ``weight``.
        exp_avg: First moment m.
        variance: Second moment v, only read.
        scalars: From :func:`step_scalars`; tensors, so that no value is compiled in.
    """
    flat = (x.view(-1) for x in (weight, grad, exp_avg, variance))
    compiled(_frozen_step)(*flat, **scalars)


def step_scalars(
    *,
    lr: float,
    weight_decay: float,
    beta1: float,
    eps: float,
    step: float | Tensor,
    v_correction: float | Tensor,
    like: Tensor,
) -> dict[str, Tensor]:
    """What :func:`compiled_frozen_step` multiplies by.

    Args:
        lr: Learning rate.
        weight_decay: Decoupled decay.
        beta1: Of the first moment.
        eps: Added to the root.
        step: t, from 1, which corrects the first moment.
        v_correction: What the variance is divided by, 1 - beta2^t0, or 1.
        like: Weights, for dtype and device.
    """
    values = {
        "decay": 1 - lr * weight_decay,
        "step_size": lr / (1 - beta1**step),
        "one_minus_beta1": 1 - beta1,
        "v_factor": 1 / v_correction,
        "eps": eps,
    }
    return {
        key: torch.as_tensor(value, dtype=like.dtype, device=like.device)
        for key, value in values.items()
    }


def _count(pattern: NMPattern, device: torch.device) -> Tensor:
    """N as a tensor, so that every N shares one compiled function."""
    return torch.tensor(pattern.n, dtype=torch.int32, device=device)


def _ranks(groups: Tensor) -> list[Tensor]:
    """How many of its group beat each member of ``[X, M, B]``, M times ``[X, B]``."""
    members = groups.abs().unbind(1)
    ranks = []
    for i, own in enumerate(members):
        rank = torch.zeros((), dtype=torch.int32, device=groups.device)
        for j, other in enumerate(members):
            if i != j:
                beats = other >= own if j < i else other > own
                rank = rank + beats.to(torch.int32)
        ranks.append(rank)
    return ranks


def _pair_mask(groups: Tensor, n: Tensor) -> Tensor:
    return torch.stack([rank < n for rank in _ranks(groups)], 1)


def _project_pairs(out: tuple[Tensor, ...], groups: Tensor, n: Tensor) -> None:
    # Each member is written by itself: into one tensor, all would be computed M times.
    for i, rank in enumerate(_ranks(groups)):
        out[i].copy_(torch.where(rank < n, groups[:, i], 0.0))


def _highest_words(groups: Tensor) -> Tensor:
    """The mask of 1:M groups ``[X, M, 1]``, its bytes four to a word."""
    members = groups.abs().squeeze(2).unbind(1)
    best = functools.reduce(torch.maximum, members)
    seen, hits = torch.zeros((), dtype=torch.int32, device=groups.device), []
    for own in members:
        hit = (own >= best).to(torch.int32) & (1 - seen)
        seen = seen | hit
        hits.append(hit)
    words = [
        hits[i] | hits[i + 1] << 8 | hits[i + 2] << 16 | hits[i + 3] << 24
        for i in range(0, len(hits), 4)
    ]
    return torch.stack(words, 1)


def _loop_bytes(groups: Tensor, n: Tensor) -> Tensor:
    """:func:`_pair_mask` for large M, whose graph of pairs would be large too."""
    groups = groups.abs()
    place = torch.arange(groups.shape[1], device=groups.device).view(1, -1, 1)
    rank = torch.zeros(groups.shape, dtype=torch.int32, device=groups.device)
    for j in range(groups.shape[1]):
        other = groups[:, j : j + 1]
        beats = torch.where(place > j, other >= groups, other > groups)
        rank = rank + beats.to(torch.int32)
    return (rank < n).to(torch.int8)


def _apply(out: Tensor, weight: Tensor, codes: Tensor) -> None:
    """``out`` = weight where the code is 1, else +0.0, bit by bit."""
    bits = torch.int32 if weight.dtype == torch.float32 else torch.int64
    mask = -codes.to(bits)
    out.view(bits).copy_(weight.view(bits) & mask)


def _frozen_step(
    weight: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    variance: Tensor,
    *,
    decay: Tensor,
    step_size: Tensor,
    one_minus_beta1: Tensor,
    v_factor: Tensor,
    eps: Tensor,
) -> None:
    exp_avg.lerp_(grad, one_minus_beta1)
    # A coordinate that has never seen a gradient stays where it is (see adam.py).
    v_hat = torch.where(variance == 0, torch.inf, variance * v_factor)
    weight.copy_(weight * decay - step_size * exp_avg / (v_hat.sqrt() + eps))
