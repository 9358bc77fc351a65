"""Magnitudes and the N:M mask in NumPy, on raw bits: for files, without torch.

The rule of the mask is that of `optim.mask`: a weight is kept if fewer than N of its
group beat it, and an equal one beats it from a lower index. Scores are unsigned
integers, so that any dtype is compared exactly: the magnitude bits of a float rise as
its magnitude does.
"""

import math
from functools import lru_cache
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from step_cli.nm.dtypes import RawBits, numpy_dtype
from step_cli.nm.groups import Mask
from step_cli.nm.pattern import NMPattern

INTEGERS = {"int8", "uint8", "int16", "uint16", "int32"}  # codes of quantised weights
FLOATS = {
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "float8_e4m3fn",
    "float8_e4m3fnuz",
    "float8_e4m3b11fnuz",
    "float8_e4m3",
    "float8_e3m4",
    "float8_e5m2",
    "float8_e5m2fnuz",
}

ROW = 512  # values summed in fp32
# All pairs are M / 2 comparisons for each weight; above this, sorting is cheaper.
LARGEST_COMPARED = 64


def float_magnitude(codes: RawBits) -> RawBits:
    """The bits of floats without their sign, which rise as the magnitude does."""
    highest = codes.dtype.type(2 ** (8 * codes.dtype.itemsize - 1) - 1)
    magnitude: RawBits = codes & highest
    return magnitude


def magnitude_sum(magnitude: RawBits, dtype: str) -> float:
    """The sum of the values behind the results of `float_magnitude`, to about 1e-8.

    A float of 8 or 16 bits, shifted to where a float32 has its exponent, is its value
    times a power of two: exact for all of them, subnormal numbers too.
    """
    if dtype == "float64":
        # Wider than the values, whose sum could otherwise overflow.
        return float(magnitude.view(np.float64).sum(dtype=np.longdouble))
    if dtype == "float32":
        return float(magnitude.view(np.float32).sum(dtype=np.float64))
    shift, scale = _to_float32(dtype)
    shifted = np.left_shift(magnitude, shift, dtype=np.uint32)
    return _sum_of(shifted.view(np.float32).reshape(-1)) * scale


def _sum_of(values: npt.NDArray[np.float32]) -> float:
    """Sum a row at a time in fp32, as that takes a sixth of the time, then in fp64."""
    whole = values.size // ROW * ROW
    with np.errstate(over="ignore"):
        rows = np.vecdot(values[:whole].reshape(-1, ROW), np.ones(ROW, np.float32))
    total = rows.sum(dtype=np.float64) + values[whole:].sum(dtype=np.float64)
    if not np.isfinite(total):  # a row near the largest bfloat16
        total = values.sum(dtype=np.float64)
    return float(total)


@lru_cache
def _to_float32(dtype: str) -> tuple[int, float]:
    """How far to shift, and what to multiply with afterwards."""
    kind = numpy_dtype(dtype)
    limits: Any = ml_dtypes.finfo
    shift = 23 - int(limits(kind).nmant)
    one = np.ones(1, kind).view(f"u{kind.itemsize}").astype(np.uint32) << shift
    return shift, 1.0 / float(one.view(np.float32)[0])


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
