"""The N:M mask in NumPy, on raw magnitudes: for files, where torch is not needed.

The rule is that of `core.mask`: a weight is kept if fewer than N of its group beat it,
and an equal one beats it from a lower index. Scores are unsigned integers, so that any
dtype is ranked exactly: the magnitude bits of a float rise as its magnitude does.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.core.bits import Codes
from step_cli.core.pattern import NMPattern

Mask = npt.NDArray[np.bool_]

# All pairs are M / 2 comparisons for each weight; above this, sorting is cheaper.
LARGEST_COMPARED = 64


def keep_highest(scores: Codes, pattern: NMPattern, axis: int) -> Mask:
    """Mark the N highest scores of each group of M along ``axis``.

    Args:
        scores: Unsigned integers of any shape; higher is kept first.
        pattern: The N:M pattern; M divides the size of the axis.
        axis: The group axis.

    Returns:
        Boolean mask, shape of ``scores``, True where the weight is kept.
    """
    inner = math.prod(scores.shape[axis + 1 :])
    groups = scores.reshape(-1, pattern.m, inner)
    keep = np.empty(groups.shape, np.bool_)
    from_planes(keep_planes(to_planes(groups), pattern.n), keep)
    return keep.reshape(scores.shape)


def to_planes(groups: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """From (X, M, B) to contiguous (M, X * B): each comparison is then one long row."""
    members, rows = groups.shape[1], groups.shape[0] * groups.shape[2]
    planes = np.empty((members, groups.shape[0], groups.shape[2]), groups.dtype)
    np.copyto(planes, groups.swapaxes(0, 1))
    return planes.reshape(members, rows)


def from_planes(planes: Mask, out: Mask) -> None:
    """From (M, X * B) back to (X, M, B), into the contiguous ``out``."""
    count, members, inner = out.shape
    if inner == 1 and members in (2, 4, 8):
        _interleave(planes, out)
        return
    out[...] = planes.reshape(members, count, inner).swapaxes(0, 1)


def _interleave(planes: Mask, out: Mask) -> None:
    """Two to eight bytes of a group are one word, built without striding."""
    members = len(planes)
    words = out.reshape(-1).view(f"<u{members}")
    np.copyto(words, planes[-1].view(np.uint8))
    for plane in planes[-2::-1]:
        np.left_shift(words, 8, out=words)
        np.bitwise_or(words, plane.view(np.uint8), out=words)


def keep_planes(scores: Codes, n: int) -> Mask:
    """Mark the ``n`` highest of each column; ``scores`` is (M, columns)."""
    members, columns = scores.shape
    if n >= members:
        return np.ones(scores.shape, np.bool_)
    if members > LARGEST_COMPARED:
        return _keep_by_sorting(scores, n)
    beaten = np.zeros(scores.shape, np.uint8)
    wins = np.empty(columns, np.bool_)
    for low in range(members):
        for high in range(low + 1, members):
            np.greater_equal(scores[low], scores[high], out=wins)
            np.add(beaten[high], wins.view(np.uint8), out=beaten[high])
            # Who does not win is beaten: M - 1 - low rivals stand above `low`.
            np.subtract(beaten[low], wins.view(np.uint8), out=beaten[low])
        beaten[low] += np.uint8(members - 1 - low)
    return beaten < n


def _keep_by_sorting(scores: Codes, n: int) -> Mask:
    # A stable sort of the complement: the highest first, ties by their index.
    order = np.argsort(~scores, axis=0, kind="stable")
    keep = np.zeros(scores.shape, np.bool_)
    np.put_along_axis(keep, order[:n], True, axis=0)
    return keep
