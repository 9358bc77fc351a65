"""The N:M mask: which weights of each group are kept.

A tensor is viewed as (X, M, B): M the group, B the product of the dimensions after the
group axis (1 for a Linear weight), X the rest. Linear, Conv1D and convolutions are then
one formulation. A weight is kept if fewer than N of its group beat it, where an equal
one beats it from a lower index. Ranking by comparison is exact, deterministic, the same
on every device, and needs no sort.

In memory the members of a group stand equally far apart. So comparing a line of weights
with itself, shifted by d of these distances, compares every weight with the one d
places behind it in its group; what reaches into another group is set to 0. The forms
were chosen by measuring on a CPU: comparisons that write floats and sums of 8-bit
integers are vectorised there, those that write booleans are not; and the work of one
chunk stays in the cache.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from step_cli.errors import NonFiniteError, UsageError
from step_cli.nm.pattern import NMPattern

CHUNK = 1 << 19  # weights ranked at a time on a CPU
LARGE_CHUNK = 1 << 24  # elsewhere, where each operation costs a launch
LONG = 64  # weights; rows of at least this many are lines of their own
CACHED = 1 << 16  # weights of a line, up to which its index tensors are kept
MANY = 16  # members of a group, from which finding its highest beats ranking all
SORTED_FROM = 65  # members of a group, which are sorted: comparisons grow with M
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


# ---------------------------------------------------------------- ranking by comparison


def highest(groups: Tensor, n: int, *, magnitude: bool) -> Tensor:
    """True for the ``n`` highest of each group; of equal ones the first.

    Args:
        groups: Scores, or weights, ``[X, M, B]``.
        n: Of 1 to M.
        magnitude: Whether the scores are the magnitudes of what is given.
    """
    if groups.shape[1] < SORTED_FROM:
        return _Ranks(groups, magnitude=magnitude).highest(n)
    keep = groups.new_zeros(groups.shape, dtype=torch.bool)
    for part, out in zip(
        torch.split(groups, 1024), torch.split(keep, 1024), strict=True
    ):
        scores = part.abs() if magnitude else part
        order = scores.argsort(dim=1, descending=True, stable=True)
        out.scatter_(1, order[:, :n], True)
    return keep


class _Ranks:
    """Ranks the members of all groups of ``[X, M, B]``, a chunk at a time."""

    def __init__(self, groups: Tensor, *, magnitude: bool) -> None:
        self.groups, self.magnitude = groups.detach(), magnitude
        count, self.m, self.behind = groups.shape
        chunk = CHUNK if groups.device.type == "cpu" else LARGE_CHUNK
        self.rows = max(1, min(count, chunk // max(1, self.m * self.behind)))
        self.long = self.behind >= LONG
        lines = 1 if self.long else self.rows
        kind = self.m, self.behind, lines, groups.device
        # Kept only where they are small: a large chunk takes longer than making them.
        small = lines * self.m * self.behind <= CACHED
        places = _places if small else _places.__wrapped__
        self._place, self._same_group = places(*kind)
        size = self.rows * self.m * self.behind
        self._scores, self._found = groups.new_empty(size), groups.new_empty(size)
        self._small = groups.new_empty(size, dtype=torch.int8)

    def highest(self, n: int) -> Tensor:
        """True for the ``n`` highest of each group; of equal ones the first."""
        keep = self.groups.new_empty(self.groups.shape, dtype=torch.int8)
        mark = self._mark_highest if n == 1 and self.m >= MANY else self._rank
        parts = torch.split(self.groups, self.rows), torch.split(keep, self.rows)
        for part, out in zip(*parts, strict=True):
            scores = self._scores[: part.numel()].view(part.shape)
            torch.abs(part, out=scores) if self.magnitude else scores.copy_(part)
            mark(scores, out)
            out.lt_(n)
        return keep.view(torch.bool)

    def _rank(self, scores: Tensor, rank: Tensor) -> None:
        """Count for each score how many of its group beat it."""
        scores, rank = self._lines(scores), self._lines(rank)
        # An equal score beats all behind it: as if every earlier one did, until shown
        # to be lower.
        rank.copy_(self._place[: rank.shape[1]])
        for d in range(1, self.m):
            step = d * self.behind
            beats = self._compare(torch.gt, scores[:, step:], scores[:, :-step])
            self._drop_other_groups(beats, d)
            rank[:, :-step] += beats
            rank[:, step:] -= beats

    def _mark_highest(self, scores: Tensor, rank: Tensor) -> None:
        """Set 0 for the highest of each group, the first of equal ones, else 1."""
        best = self._compare(torch.lt, scores, scores.amax(1, keepdim=True))
        lower, seen = self._lines(rank), self._lines(1 - best)
        lower.copy_(self._lines(best))
        reach = 1
        while reach < self.m:  # afterwards: is one of the highest here or before?
            step = reach * self.behind
            before = seen[:, :-step].clone()
            self._drop_other_groups(before, reach)
            seen[:, step:] |= before
            reach *= 2
        before = seen[:, : -self.behind].clone()
        self._drop_other_groups(before, 1)
        lower[:, self.behind :] |= before

    def _compare(
        self, compare: Callable[..., Any], left: Tensor, right: Tensor
    ) -> Tensor:
        """1 where the comparison holds, shape of ``left``; valid until the next."""
        found = self._found[: left.numel()].view(left.shape)
        compare(left, right, out=found)
        small: Tensor = self._small[: left.numel()].view(left.shape).copy_(found)
        return small

    def _drop_other_groups(self, values: Tensor, d: int) -> None:
        """Set 0 where the weight ``d`` places on is of another group."""
        if not self.long:
            values &= self._same_group[d][: values.shape[1]]

    def _lines(self, part: Tensor) -> Tensor:
        """A chunk as lines in which each weight's group lies ahead of it."""
        return part.view(len(part) if self.long else 1, -1)


@functools.lru_cache(maxsize=16)
def _places(
    m: int, behind: int, lines: int, device: torch.device
) -> tuple[Tensor, list[Tensor]]:
    """Where in its group each weight of a line is, and who shares its group.

    Args:
        m: Members of a group.
        behind: Weights between two members.
        lines: Groups, of ``behind`` each, in a line.
        device: Where the scores are.

    Returns:
        The place, and for each distance d whether the weight d members on is of the
        same group, int8; no distances for a line of its own, which ends with its group.
    """

    def line(members: Tensor) -> Tensor:
        return members.to(torch.int8).repeat_interleave(behind).repeat(lines)

    place = torch.arange(m, device=device)
    distances = range(m if behind < LONG else 0)
    return line(place), [line(place < m - d) for d in distances]
