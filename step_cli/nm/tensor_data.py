"""The data of one tensor: raw bits with a dtype, and the numbers behind them."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.nm.dtypes import numpy_dtype

Array = npt.NDArray[np.generic]


@dataclass(frozen=True)
class Part:
    """A box of a tensor that a product uses.

    Attributes:
        begin: Its first index along each axis.
        end: One past its last index along each axis.
        phase: How many of what the product sums over stand before its first element:
            where the parts of several tensors are joined along the group axis, a group
            is whole only if this and the size of the part are multiples of M.
    """

    begin: tuple[int, ...]
    end: tuple[int, ...]
    phase: int = 0


@dataclass(frozen=True, eq=False)
class Scale:
    """What codes are multiplied by, once the code of zero is subtracted from them.

    Attributes:
        values: In fp32, with as many axes as the codes: of size 1 where they do not
            differ.
        lookup: For each axis which of the values belongs to each index of it; None
            where they do not differ.
    """

    values: npt.NDArray[np.float32]
    lookup: tuple[npt.NDArray[np.int64] | None, ...]

    @property
    def axes(self) -> frozenset[int]:
        """The axes along which it differs."""
        return frozenset(a for a, at in enumerate(self.lookup) if at is not None)

    def transposed(self, order: Sequence[int]) -> "Scale":
        """The same for axes in another order."""
        lookup = tuple(self.lookup[axis] for axis in order)
        return Scale(self.values.transpose(order), lookup)

    def part(self, part: Part) -> "Scale":
        """The same for a part of the codes."""
        spans = zip(self.lookup, part.begin, part.end, strict=True)
        lookup = (None if at is None else at[begin:end] for at, begin, end in spans)
        return Scale(self.values, tuple(lookup))

    def at(
        self, positions: npt.NDArray[np.int64], shape: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """The value for each code.

        Args:
            positions: Row-major, of the codes.
            shape: Of all of them.
        """
        index: list[Any] = []
        for axis, at in enumerate(self.lookup):
            step = math.prod(shape[axis + 1 :])
            index.append(0 if at is None else at[positions // step % shape[axis]])
        return np.broadcast_to(self.values[tuple(index)], positions.shape)


@dataclass(frozen=True)
class TensorData:
    """The data of one tensor.

    Attributes:
        array: Any shape; its bits are those of ``dtype``.
        dtype: NumPy spelling.
        zero: Integer codes only: the codes that mean zero, one, or one per slice of
            ``zero_axis``. None: the code 0.
        zero_axis: None if ``zero`` holds a single code.
        scales: Of codes: what they are multiplied by, one after another.
    """

    array: Array
    dtype: str
    zero: Array | None = None
    zero_axis: int | None = None
    scales: tuple[Scale, ...] = ()

    def transposed(self, order: Sequence[int]) -> "TensorData":
        """The same with its axes in another order, as a view."""
        axis = None if self.zero_axis is None else tuple(order).index(self.zero_axis)
        scales = tuple(scale.transposed(order) for scale in self.scales)
        array = self.array.transpose(order)
        return TensorData(array, self.dtype, self.zero, axis, scales)

    def part(self, part: Part) -> "TensorData":
        """A part of it, as a view."""
        ranges = map(slice, part.begin, part.end)
        array, zero = self.array[tuple(ranges)], self.zero
        if zero is not None and self.zero_axis is not None:
            zero = zero[part.begin[self.zero_axis] : part.end[self.zero_axis]]
        scales = tuple(scale.part(part) for scale in self.scales)
        return TensorData(array, self.dtype, zero, self.zero_axis, scales)

    def scaled(
        self, values: npt.NDArray[Any], positions: npt.NDArray[np.int64]
    ) -> npt.NDArray[Any]:
        """Codes less the code of zero as the numbers that they stand for.

        Args:
            values: In fp32 or fp64.
            positions: Row-major, of the codes; of the shape of ``values``.
        """
        for scale in self.scales:
            values = values * scale.at(positions, self.array.shape)
        return values

    def zero_codes(self, positions: npt.NDArray[np.int64]) -> Array:
        """The code that means zero for each weight, or one for all of them.

        Args:
            positions: Row-major, of the weights.
        """
        assert self.zero is not None
        codes = self.zero.reshape(-1)
        if self.zero_axis is None or np.all(codes == codes[:1]):
            return codes[:1]
        inner = math.prod(self.array.shape[self.zero_axis + 1 :])
        return codes[positions // inner % codes.size]


def values_of(weights: TensorData, rows: slice) -> npt.NDArray[Any]:
    """Rows of a tensor as numbers, in fp32 or fp64.

    Of codes whose scales are not known, the distance from the code of zero.

    Args:
        weights: The tensor.
        rows: Of its first axis.
    """
    kind = numpy_dtype(weights.dtype)
    codes = weights.array[rows].view(kind)
    if weights.zero is None and not weights.scales:
        return codes.astype(np.float64 if kind.itemsize == 8 else np.float32)
    first = rows.start * math.prod(codes.shape[1:])
    positions = np.arange(first, first + codes.size).reshape(codes.shape)
    if weights.zero is None:
        return weights.scaled(codes.astype(np.float32), positions)
    zero = weights.zero_codes(positions).astype(np.int64)
    distance = (codes.astype(np.int64) - zero).astype(np.float64)
    return weights.scaled(distance, positions)


def row_pieces(weights: TensorData, multiple_of: int, most: int) -> Iterator[slice]:
    """Cut the first axis into pieces of about ``most`` weights.

    Args:
        weights: The tensor.
        multiple_of: What the number of rows of a piece is a multiple of.
        most: Weights.
    """
    rows, row = len(weights.array), max(1, weights.array[:1].size)
    step = max(1, most // row // multiple_of) * multiple_of
    for first in range(0, rows, step):
        yield slice(first, min(first + step, rows))
