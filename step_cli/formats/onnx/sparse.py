"""Sparse tensors of ONNX, as the dense ones that they stand for."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# A file of a few bytes could ask for any number of zeros.
MOST_ELEMENTS = 1 << 22
MOST_FOR_EACH = 1024  # elements for each that is stored


def dense_array(values: Array, indices: Array, shape: Sequence[int]) -> Array:
    """The dense array behind a list of its non-zeros.

    Args:
        values: The numbers that are stored.
        indices: Where each stands: [values], counted row by row, or [values, axes].
        shape: Of the dense array.

    Raises:
        ValueError: An index lies outside the shape, the lists do not fit each other, or
            the array would be out of proportion to what is stored.
    """
    count, size = values.size, math.prod(shape)
    if size > max(MOST_ELEMENTS, MOST_FOR_EACH * count):
        raise ValueError(f"{count} stored numbers stand for {size} elements")
    if values.ndim != 1 or indices.dtype != np.int64:
        raise ValueError("its values are no list, or its indices not int64")
    if indices.shape == (count, len(shape)) and indices.ndim == 2:
        limits = np.asarray(shape, np.int64)
        _check(indices, limits)
        steps = [math.prod(shape[axis + 1 :]) for axis in range(len(shape))]
        flat = indices @ np.asarray(steps, np.int64)
    elif indices.shape == (count,):
        flat = indices
        _check(flat, np.asarray(size, np.int64))
    else:
        raise ValueError(f"{count} values have indices of shape {list(indices.shape)}")
    dense = np.zeros(size, values.dtype)
    dense[flat] = values
    dense = dense.reshape(tuple(shape))
    dense.flags.writeable = False
    return dense


def _check(indices: Array, limits: Array) -> None:
    if np.any(indices < 0) or np.any(indices >= limits):
        raise ValueError("an index lies outside the shape")
