"""The N:M mask: which weights of each group are kept.

A tensor is viewed as (X, M, B): M the group, B the product of the dimensions after the
group axis (1 for a Linear weight), X the rest. Linear, Conv1D and convolutions are then
one formulation. A weight is kept if fewer than N of its group beat it, where an equal
one beats it from a lower index. Ranking by comparison is exact, deterministic, the same
on every device, and needs no sort.
"""

import torch
from torch import Tensor

from step_cli.core.pattern import NMPattern
from step_cli.errors import NonFiniteError, UsageError

CHUNK = 1 << 18  # weights ranked at a time, so that the work stays in the cache


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
        UsageError: The axis does not exist, or its size is not a multiple of M.
        NonFiniteError: A score is NaN, which has no rank.
    """
    pattern = NMPattern.parse(pattern) if isinstance(pattern, str) else pattern
    check_groups(tuple(scores.shape), pattern, axis)
    if bool(torch.isnan(scores).any()):
        raise NonFiniteError("a score is NaN, which has no rank")
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
    groups = to_groups(scores, pattern.m, axis)
    keep = torch.empty(groups.shape, dtype=torch.bool, device=scores.device)
    if pattern.dense:
        return keep.fill_(True).view(scores.shape)
    rows = max(1, CHUNK // max(1, groups.shape[1] * groups.shape[2]))
    parts = zip(torch.split(groups, rows), torch.split(keep, rows), strict=True)
    for part, out in parts:
        out.copy_(_beaten_by(part.movedim(1, 0)).lt(pattern.n).movedim(0, 1))
    return keep.view(scores.shape)


def to_groups(values: Tensor, m: int, axis: int) -> Tensor:
    """View ``values`` as (X, M, B): groups of ``m`` along ``axis`` in the middle."""
    axis %= values.dim()
    before, behind = values.shape[:axis].numel(), values.shape[axis + 1 :].numel()
    return values.reshape(before * (values.shape[axis] // m), m, behind)


def _beaten_by(groups: Tensor) -> Tensor:
    """How many of its group beat each score; ``groups`` is (M, X, B)."""
    groups = groups.contiguous()  # the group first: each comparison is one long row
    rank = torch.zeros(groups.shape, dtype=torch.int16, device=groups.device)
    for j, score in enumerate(groups):
        rank[:j] += score > groups[:j]
        rank[j + 1 :] += score >= groups[j + 1 :]
    return rank


def count_violations(weight: Tensor, pattern: NMPattern, axis: int) -> int:
    """How many groups hold more than N non-zeros."""
    check_groups(tuple(weight.shape), pattern, axis)
    nonzeros = to_groups(weight, pattern.m, axis).ne(0).sum(1)
    return int(nonzeros.gt(pattern.n).sum())
