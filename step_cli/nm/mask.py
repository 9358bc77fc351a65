"""The N:M mask in NumPy, on raw magnitudes: for files, where torch is not needed.

The rule is that of `optim.mask`: a weight is kept if fewer than N of its group beat it,
and an equal one beats it from a lower index. Scores are unsigned integers, so that any
dtype is ranked exactly: the magnitude bits of a float rise as its magnitude does.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.nm.dtypes import Codes
from step_cli.nm.groups import Mask, Scratch
from step_cli.nm.pattern import NMPattern

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
    groups, scratch = scores.reshape(-1, pattern.m, inner), Scratch()
    keep = np.empty(groups.shape, np.bool_)
    planes = keep_planes(to_planes(groups, scratch), pattern.n, scratch)
    from_planes(planes, keep)
    return keep.reshape(scores.shape)


def to_planes(
    groups: npt.NDArray[Any], scratch: Scratch, use: str = "planes"
) -> npt.NDArray[Any]:
    """From (X, M, B) to contiguous (M, X * B): each comparison is then one long row."""
    x, members, inner = groups.shape
    planes: npt.NDArray[Any] = scratch.take(use, groups.dtype, (members, x, inner))
    np.copyto(planes, groups.swapaxes(0, 1))
    return planes.reshape(members, x * inner)


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


def keep_planes(scores: Codes, n: int, scratch: Scratch) -> Mask:
    """Mark the ``n`` highest of each column; ``scores`` is (M, columns)."""
    members, columns = scores.shape
    keep: Mask = scratch.take("keep", np.bool_, scores.shape)
    if n >= members:
        keep[...] = True
    elif members > LARGEST_COMPARED:
        _keep_by_sorting(scores, n, keep)
    else:
        beaten: Codes = scratch.take("beaten", np.uint8, scores.shape)
        _count_beating(scores, beaten, scratch.take("wins", np.bool_, (columns,)))
        np.less(beaten, n, out=keep)
    return keep


def _count_beating(scores: Codes, beaten: Codes, wins: Mask) -> None:
    """Count into ``beaten`` how many of its column beat each score."""
    members = len(scores)
    beaten[...] = 0
    for low in range(members):
        for high in range(low + 1, members):
            np.greater_equal(scores[low], scores[high], out=wins)
            np.add(beaten[high], wins.view(np.uint8), out=beaten[high])
            # Who does not win is beaten: M - 1 - low rivals stand above `low`.
            np.subtract(beaten[low], wins.view(np.uint8), out=beaten[low])
        beaten[low] += np.uint8(members - 1 - low)


def _keep_by_sorting(scores: Codes, n: int, keep: Mask) -> None:
    # A stable sort of the complement: the highest first, ties by their index.
    order = np.argsort(~scores, axis=0, kind="stable")
    keep[...] = False
    np.put_along_axis(keep, order[:n], True, axis=0)
