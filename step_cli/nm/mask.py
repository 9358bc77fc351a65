"""The N:M mask in NumPy, on raw magnitudes: for files, where torch is not needed.

The rule is that of `optim.mask`: a weight is kept if fewer than N of its group beat it,
and an equal one beats it from a lower index. Scores are unsigned integers, so that any
dtype is ranked exactly: the magnitude bits of a float rise as its magnitude does.
"""

import math

import numpy as np

from step_cli.nm.dtypes import RawBits
from step_cli.nm.groups import Mask
from step_cli.nm.pattern import NMPattern

# All pairs are M / 2 comparisons for each weight; above this, sorting is cheaper.
LARGEST_COMPARED = 64


def keep_highest(scores: RawBits, pattern: NMPattern, axis: int) -> Mask:
    """Mark the N highest scores of each group of M along ``axis``.

    Args:
        scores: Unsigned integers of any shape; higher is kept first.
        pattern: The N:M pattern; M divides the size of the axis.
        axis: The group axis.

    Returns:
        Boolean mask, shape of ``scores``, True where the weight is kept.
    """
    if pattern.dense:
        return np.ones(scores.shape, np.bool_)
    inner = math.prod(scores.shape[axis + 1 :])
    groups = scores.reshape(-1, pattern.m, inner)
    members = np.ascontiguousarray(groups.swapaxes(0, 1))  # a comparison is a long row
    if pattern.m <= LARGEST_COMPARED:
        keep = _count_beating(members) < pattern.n
    else:
        # A stable sort of the complement: the highest first, ties by their index.
        order = np.argsort(~members, axis=0, kind="stable")
        keep = np.zeros(members.shape, np.bool_)
        np.put_along_axis(keep, order[: pattern.n], True, axis=0)
    return keep.swapaxes(0, 1).reshape(scores.shape)


def _count_beating(members: RawBits) -> RawBits:
    """How many of its group beat each score; ``members`` is (M, X, B)."""
    beaten = np.zeros(members.shape, np.uint8)
    for low in range(len(members)):
        for high in range(low + 1, len(members)):
            wins = members[low] >= members[high]
            beaten[high] += wins
            beaten[low] += ~wins
    return beaten
