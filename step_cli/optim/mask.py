"""The N:M mask: which weights of each group are kept.

A tensor is viewed as (X, M, B): M the group, B the product of the dimensions after the
group axis (1 for a Linear weight), X the rest. Linear, Conv1D and convolutions are then
one formulation. A weight is kept if fewer than N of its group beat it, where an equal
one beats it from a lower index. Ranking by comparison is exact, deterministic, the same
on every device, and needs no sort.
"""

import torch
from torch import Tensor

from step_cli.errors import NonFiniteError, UsageError
from step_cli.nm.pattern import NMPattern
from step_cli.optim.ranks import highest

BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def nm_mask(scores: Tensor, pattern: NMPattern | str, axis: int) -> Tensor:
    """Mark the N highest scores of each group of M.

    Ties keep the lower index, so the same weights give the same mask everywhere.

    Args:
        scores: Importance of each weight, any shape; magnitude is ``weight.abs()``.
        pattern: The N:M pattern, or its text such as ``"2:4"``.
        axis: The group axis, normally the reduction (input) axis of the layer.

    Returns:
        Boolean mask, shape of ``scores``, True where the weight is kept.

    Raises:
        UsageError: The axis does not exist, its size is not a multiple of M, or the
            scores are complex or of 8 bits.
        NonFiniteError: A score is NaN, which cannot be ordered.
    """
    pattern = NMPattern.of(pattern)
    if scores.layout != torch.strided:
        raise UsageError(f"scores of layout {scores.layout}: give them by to_dense()")
    check_groups(tuple(scores.shape), pattern, axis)
    if scores.is_complex() or scores.dtype.itemsize == 1:
        raise UsageError(f"scores of {scores.dtype} have no order here: use float32")
    if bool(torch.isnan(scores).any()):
        raise NonFiniteError("a score is NaN, which cannot be ordered")
    return keep_mask(scores, pattern, axis)


def check_groups(shape: tuple[int, ...], pattern: NMPattern, axis: int) -> None:
    """Refuse a shape that does not divide into groups of M along ``axis``.

    Raises:
        UsageError: The axis does not exist, or its size is not a multiple of M.
    """
    if not -len(shape) <= axis < len(shape):
        raise UsageError(f"axis {axis} does not exist in shape {shape}")
    if shape[axis] % pattern.m:
        raise UsageError(
            f"axis {axis} of shape {shape} has {shape[axis]} elements, not a multiple "
            f"of M={pattern.m}; exclude this layer or pad it"
        )


def keep_mask(scores: Tensor, pattern: NMPattern, axis: int) -> Tensor:
    """:func:`nm_mask` for scores known to be divisible and free of NaN."""
    return _highest(scores, pattern, axis, magnitude=False)


def magnitude_mask(weight: Tensor, pattern: NMPattern, axis: int) -> Tensor:
    """:func:`keep_mask` of ``weight.abs()``, without a copy of the whole."""
    return _highest(weight, pattern, axis, magnitude=True)


def _highest(
    values: Tensor, pattern: NMPattern, axis: int, *, magnitude: bool
) -> Tensor:
    if pattern.dense or not values.numel():
        return torch.ones(values.shape, dtype=torch.bool, device=values.device)
    groups = to_groups(values, pattern.m, axis)
    return highest(groups, pattern.n, magnitude=magnitude).view(values.shape)


def masked(values: Tensor, keep: Tensor) -> Tensor:
    """``values`` where ``keep`` is True, else +0.0.

    By bits: `torch.where` branches on a CPU, 8 times slower for a mask without order.
    """
    bits = BITS[values.element_size()]
    mask = keep.view(torch.int8).to(bits).neg_()
    return mask.bitwise_and_(values.detach().view(bits)).view(values.dtype)


def to_groups(values: Tensor, m: int, axis: int) -> Tensor:
    """View ``values`` as (X, M, B): groups of ``m`` along ``axis`` in the middle."""
    axis %= values.dim()
    before, behind = values.shape[:axis].numel(), values.shape[axis + 1 :].numel()
    return values.reshape(before * (values.shape[axis] // m), m, behind)


def count_violations(weight: Tensor, pattern: NMPattern, axis: int) -> int:
    """How many groups hold more than N non-zeros."""
    check_groups(tuple(weight.shape), pattern, axis)
    nonzeros = to_groups(weight, pattern.m, axis).ne(0).sum(1)
    return int(nonzeros.gt(pattern.n).sum())
