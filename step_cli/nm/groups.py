"""A tensor as groups of M weights, walked in pieces that fit the processor's cache.

With axis the group axis, a contiguous tensor is (X, M, B): B the product of the sizes
after the axis, M the group, X all the rest. Linear and Conv become one formulation.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from step_cli.nm.dtypes import DTypeInfo, RawBits, dtype_info
from step_cli.nm.tensor_data import TensorData

Mask = npt.NDArray[np.bool_]

# Fits a core's own cache with its buffers; below it, threads wait for each other.
PIECE_BYTES = 1 << 20


class Piece(NamedTuple):
    """The groups (x, b) with x in ``first`` to ``last``, b in ``left`` to ``right``."""

    first: int
    last: int
    left: int
    right: int


class Groups:
    """The groups of a tensor along ``axis``, whose size is a multiple of ``m``."""

    def __init__(self, data: TensorData, m: int, axis: int) -> None:
        self.bits: DTypeInfo = dtype_info(data.dtype)
        self.shape = data.array.shape
        self.m = m
        self.inner = math.prod(self.shape[axis + 1 :])
        codes = np.ascontiguousarray(data.array).view(self.bits.unsigned)
        self.codes: RawBits = codes.reshape(-1, m, self.inner)
        self._mask = codes.dtype.type(self.bits.mask)
        self._data = data
        # Whether no code but 0, or its like with a sign, means zero.
        zero = b"" if data.zero is None else data.zero.tobytes()
        self.zero_is_zero = not zero.strip(b"\0")

    @property
    def elements(self) -> int:
        """How many weights there are."""
        return self.codes.size

    @property
    def whole(self) -> Piece:
        """All groups."""
        count, _, inner = self.codes.shape
        return Piece(0, count, 0, inner)

    def pieces(
        self, size_bytes: int | None = None, of: Piece | None = None
    ) -> Iterator[Piece]:
        """Cut all groups, or a piece, into pieces of about ``size_bytes``.

        Groups are never cut. None: ``PIECE_BYTES``.
        """
        of = of or self.whole
        m, inner = self.m, of.right - of.left
        most = (size_bytes or PIECE_BYTES) // self.codes.itemsize
        if m * inner <= most:
            step = most // (m * inner)
            for first in range(of.first, of.last, step):
                last = min(first + step, of.last)
                yield Piece(first, last, of.left, of.right)
            return
        width = max(1, most // m)
        for first in range(of.first, of.last):
            for left in range(of.left, of.right, width):
                yield Piece(first, first + 1, left, min(left + width, of.right))

    def codes_of(self, piece: Piece) -> RawBits:
        """The codes of a piece, shape (x, M, b)."""
        return self.codes[piece.first : piece.last, :, piece.left : piece.right]

    def magnitude(self, piece: Piece, scratch: "Scratch") -> RawBits:
        """The codes of a piece, shape (x, M, b), 0 where the weight is zero."""
        codes = self.codes_of(piece)
        result: RawBits = scratch.take("magnitude", codes.dtype, codes.shape)
        if not self.zero_is_zero:
            zero = self._data.zero_codes(self.flat(piece)).view(codes.dtype)
            codes = np.bitwise_xor(codes, zero, out=result)
        np.bitwise_and(codes, self._mask, out=result)
        return result

    def flat(self, piece: Piece) -> npt.NDArray[np.int64]:
        """The row-major positions in the tensor of a piece's weights."""
        x = np.arange(piece.first, piece.last)[:, None, None]
        member = np.arange(self.m)[None, :, None]
        b = np.arange(piece.left, piece.right)[None, None, :]
        return (x * self.m + member) * self.inner + b

    def position(self, piece: Piece, x: int, member: int, b: int) -> int:
        """The row-major position in the tensor of one weight of a piece."""
        return ((piece.first + x) * self.m + member) * self.inner + piece.left + b


def index_of(position: int, shape: tuple[int, ...]) -> tuple[int, ...]:
    """A row-major position as an index of a tensor."""
    return tuple(int(i) for i in np.unravel_index(position, shape))


class Scratch:
    """Buffers that are used again for each piece, as fresh memory costs more to touch.

    One thread, one scratch.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, npt.NDArray[np.uint8]] = {}
        self._taken: dict[str, tuple[npt.DTypeLike, tuple[int, ...], Any]] = {}

    def take(self, use: str, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Any:
        """An array for one ``use``; what the last one held is lost."""
        last = self._taken.get(use)
        if last is not None and last[0] == dtype and last[1] == shape:
            return last[2]
        array = self._new(use, dtype, shape)
        self._taken[use] = dtype, shape, array
        return array

    def _new(self, use: str, dtype: npt.DTypeLike, shape: tuple[int, ...]) -> Any:
        size_bytes = math.prod(shape) * np.dtype(dtype).itemsize
        buffer = self._buffers.get(use)
        if buffer is None or buffer.size < size_bytes:
            buffer = self._buffers[use] = np.empty(size_bytes, np.uint8)
        return buffer[:size_bytes].view(dtype).reshape(shape)


class Counts:
    """The non-zeros of each group of a piece, shape (x, b): ``words >> shift``.

    Shifting costs a pass over the words, so it is left to who needs every count.
    """

    def __init__(self, words: RawBits, shift: int = 0) -> None:
        """Look for the largest and the smallest count, ``most`` and ``fewest``."""
        self.words = words
        self.shift = shift
        self.most = int(words.max()) >> shift
        self.fewest = int(words.min()) >> shift

    def each(self) -> RawBits:
        """Every count."""
        return self.words >> self.words.dtype.type(self.shift)


def count_in_groups(nonzero: Mask, scratch: Scratch) -> Counts:
    """How many are True in each group of a piece of shape (x, M, b), which is lost."""
    groups, m, inner = nonzero.shape
    if inner == 1 and m in (2, 4, 8, 16, 32, 64):
        return _count_in_words(nonzero.reshape(groups, m), scratch)
    members = nonzero.view(np.uint8)
    if m > 255:
        return Counts(_count_large_groups(members, scratch))
    counts: RawBits = scratch.take("counts", np.uint8, (groups, inner))
    # NumPy's own loop over members pays where what lies in a row is long.
    if inner >= 256 or (inner == 1 and m > 64):
        np.add.reduce(members, axis=1, dtype=np.uint8, out=counts)
        return Counts(counts)
    np.copyto(counts, members[:, 0])
    for member in range(1, m):
        np.add(counts, members[:, member], out=counts)
    return Counts(counts)


def _count_large_groups(members: RawBits, scratch: Scratch) -> RawBits:
    """Count groups of more than 255, which one byte cannot: 255 members at a time."""
    groups, m, inner = members.shape
    counts: RawBits = scratch.take("counts", np.uint32, (groups, inner))
    part: RawBits = scratch.take("part", np.uint8, (groups, inner))
    counts[...] = 0
    for first in range(0, m, 255):
        some = members[:, first : first + 255]
        np.add.reduce(some, axis=1, dtype=np.uint8, out=part)
        np.add(counts, part, out=counts)
    return counts


def _count_in_words(nonzero: Mask, scratch: Scratch) -> Counts:
    """Count groups of 2 to 64 that lie in a row, a word of up to 8 at a time.

    Multiplying by 0x0101... puts the sum of all bytes of a word into its highest one.
    """
    groups, m = nonzero.shape
    words: RawBits = nonzero.view(f"u{min(m, 8)}")
    total = words[:, :1]
    # In place where it can be, as every byte written costs: the cache is small.
    buffer = total if m <= 8 else scratch.take("counts", words.dtype, (groups, 1))
    for word in range(1, words.shape[1]):
        # Byte by byte: none gets above M / 8, so nothing is carried over.
        total = np.add(total, words[:, word : word + 1], out=buffer)
    bits = 8 * words.dtype.itemsize
    np.multiply(total, words.dtype.type((2**bits - 1) // 255), out=buffer)
    return Counts(buffer, bits - 8)
