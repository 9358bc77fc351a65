"""What stored numbers mean behind quantizers: which are zero, what others stand for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.formats.checkpoint import ZeroPoint
from step_cli.formats.onnx.data import DTYPES
from step_cli.formats.onnx.model import Tensor
from step_cli.nm.tensor_data import Part

Array = npt.NDArray[Any]

MOST_CODES = 1 << 24  # along an axis


@dataclass(frozen=True, eq=False)
class ZeroInput:
    """What a node is given as its zero point.

    Attributes:
        key: The same for the same value.
        codes: None: they are not known here.
        is_given: Whether there is one at all.
    """

    key: object
    codes: Array | None
    is_given: bool = True

    def same(self, other: "ZeroInput") -> bool:
        """Whether both are surely the same codes."""
        if self.key == other.key:
            return True
        one, two = self.codes, other.codes
        if one is None or two is None:
            return False
        return bool(np.array_equal(_single(one), _single(two)))


@dataclass(frozen=True, eq=False)
class Zeros:
    """The codes of zero: one for all, or one for each of some indices of an axis."""

    codes: Array
    axis: int | None = None
    indices: Array | None = None


@dataclass(frozen=True, eq=False)
class PieceScale:
    """What a part of stored codes is multiplied by.

    Attributes:
        values: With as many axes as the codes; of size 1 where they do not differ.
        along: Where they differ: the axis, some indices of it, and which of the values
            belongs to each of these.
    """

    values: npt.NDArray[np.float32]
    along: tuple[tuple[int, Array, Array], ...] = ()

    @property
    def axes(self) -> frozenset[int]:
        """The axes along which it differs."""
        return frozenset(axis for axis, *_ in self.along)

    def same(self, other: "PieceScale") -> bool:
        """Whether both are the same numbers in the same places."""
        if self is other:
            return True
        pairs = zip(self.along, other.along, strict=False)
        return (
            [axis for axis, *_ in self.along] == [axis for axis, *_ in other.along]
            and np.array_equal(self.values, other.values)
            and all(all(map(np.array_equal, a[1:], b[1:])) for a, b in pairs)
        )


@dataclass(frozen=True, eq=False)
class Meaning:
    """What stored numbers mean where they stand in an operand.

    Attributes:
        known: False if it is not known which of them are zero.
        zeros: The codes that mean zero; None: the number 0.
        decided: Whether a node has told what the codes mean.
        is_changed: Whether they were cast or multiplied before that.
        quantizer: The zero point of the quantizer that they have passed last.
        zero_given: Whether a node gives a zero point, be it 0.
        scales: What codes were multiplied by, one after another; None: that is not
            known.
        scale_axes: The stored axes along which these differ, or may differ.
    """

    known: bool = True
    zeros: Zeros | None = None
    decided: bool = False
    is_changed: bool = False
    quantizer: ZeroInput | None = None
    zero_given: bool = False
    scales: tuple[PieceScale, ...] | None = ()
    scale_axes: frozenset[int] = frozenset()

    @property
    def is_told(self) -> bool:
        """Whether it is known which of the numbers are zero in the product.

        Behind a quantizer that has not been undone, those whose code is 0.
        """
        codes = None if self.quantizer is None else self.quantizer.codes
        plain = self.quantizer is None or (codes is not None and not np.any(codes != 0))
        return self.known and plain

    def changed(self) -> "Meaning":
        """After a cast or a scale, which leaves 0 as it is."""
        return self if self.is_changed else replace(self, is_changed=True)

    def scaled(self, scale: PieceScale | None, axes: frozenset[int]) -> "Meaning":
        """Multiplied by numbers that differ along ``axes``; None: not known ones."""
        before = self.scales
        scales = None if before is None or scale is None else (*before, scale)
        return replace(self, scales=scales, scale_axes=self.scale_axes | axes)

    def quantized(self, zero: ZeroInput) -> "Meaning":
        """As codes, whatever it was."""
        return replace(self, quantizer=zero)

    def dequantized(
        self, zero: ZeroInput, zeros: Zeros | None, tensor: Tensor
    ) -> "Meaning":
        """As numbers again.

        Args:
            zero: The zero point of the node.
            zeros: The same for this tensor; None if it cannot be told.
            tensor: The stored tensor.
        """
        if self.quantizer is not None:
            known = self.known and self.quantizer.same(zero)
            return replace(self, known=known, quantizer=None, decided=True)
        given = self.zero_given or zero.is_given
        if zeros is None:
            return replace(self, known=False)
        if not np.any(zeros.codes != 0):
            return replace(self, decided=True, zero_given=given)
        kind = DTYPES.get(tensor.data_type)
        codes = kind is not None and (kind.kind in "iu" or "int4" in kind.name)
        fits = codes and not self.decided and not self.is_changed
        known = self.known and fits
        return replace(self, known=known, zeros=zeros, decided=True, zero_given=given)


def one_zero(codes: Array) -> bool:
    """Whether there is one zero point for all."""
    return codes.size > 0 and bool((codes == codes.flat[0]).all())


def along(codes: Array, rank: int, axis: int) -> int | None:
    """The axis of an operand along which zero points differ, or None.

    Args:
        codes: One for each index of an axis.
        rank: Of the operand.
        axis: That of a list of them; others have the operand's rank.
    """
    if codes.ndim == 1:
        return axis % rank if -rank <= axis < rank else None
    wide = [place for place, size in enumerate(codes.shape) if size != 1]
    return wide[0] if codes.ndim == rank and len(wide) == 1 else None


def zero_point_of(
    tensor: Tensor, uses: Sequence[tuple[Meaning, Sequence[Part]]]
) -> tuple[ZeroPoint | None, bool]:
    """What all products take for zero, and whether that can be told.

    Args:
        tensor: The stored tensor.
        uses: What its numbers mean to each product, and the parts that it uses.
    """
    if not all(meaning.is_told for meaning, _ in uses):
        return None, False
    found = [(meaning.zeros or Zeros(np.zeros((), np.int8)), p) for meaning, p in uses]
    singles = {int(zeros.codes) for zeros, _ in found if zeros.axis is None}
    if all(zeros.axis is None for zeros, _ in found) and len(singles) == 1:
        first = next(m.zeros for m, _ in uses) if singles != {0} else None
        return None if first is None else ZeroPoint(first.codes), True
    for axis, size in enumerate(tensor.shape):
        codes = _codes_along(axis, size, found)
        if codes is not None:
            return ZeroPoint(codes, axis), True
    return None, False


def _codes_along(
    axis: int, size: int, uses: Sequence[tuple[Zeros, Sequence[Part]]]
) -> Array | None:
    """One code for each index of an axis, if all uses agree on them."""
    if size > MOST_CODES:
        return None
    kind = max((zeros.codes.dtype for zeros, _ in uses), key=lambda d: d.itemsize)
    codes, known = np.zeros(size, kind), np.zeros(size, bool)
    for zeros, parts in uses:
        if zeros.axis is not None:
            if zeros.axis != axis:
                return None
            at: Any = zeros.indices
        else:
            at = np.zeros(size, bool)
            for part in parts:
                at[part.begin[axis] : part.end[axis]] = True
        if np.any(known[at] & (codes[at] != zeros.codes)):
            return None
        codes[at], known[at] = zeros.codes, True
    return codes


def _single(codes: Array) -> Array:
    flat = codes.reshape(math.prod(codes.shape))
    return flat[:1] if one_zero(flat) else flat
