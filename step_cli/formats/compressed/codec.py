"""Kept values and sparse metadata of an N:M tensor, and back; NumPy on raw bits.

A tensor is viewed as (X, M, B): M the group, B the product of the dimensions after the
group axis, X the rest. Groups come in (X, B) order, each with exactly N slots: its
non-zeros and, where there are fewer, its lowest-index zeros, in rising position. The
sparse metadata is the position of each slot, ceil(log2 M) bits, packed from the low
bits of each byte. For 2:4 that is what tensor cores call metadata, before reordering.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.nm.pattern import NMPattern, NMSpec

Array = npt.NDArray[Any]

TWO_FOUR = NMPattern(2, 4)
TOO_MANY = "a group has more than N non-zeros; check the pattern first"
CHUNK = 1 << 18  # elements worked on at a time, so that the work stays in the cache


class BadPositionsError(ValueError):
    """Positions that no encoder writes; the message names the first bad group."""


@dataclass(frozen=True)
class Layout:
    """Where the groups of one tensor lie, and what its two parts measure."""

    shape: tuple[int, ...]
    spec: NMSpec

    @property
    def size(self) -> int:
        """Elements of the dense tensor."""
        return math.prod(self.shape)

    @property
    def behind(self) -> int:
        """Product of the dimensions after the group axis: B."""
        return math.prod(self.shape[self.spec.axis + 1 :])

    @property
    def groups(self) -> int:
        """Number of groups."""
        return self.size // self.spec.pattern.m

    @property
    def slots(self) -> int:
        """Number of kept values, fillers included."""
        return self.groups * self.spec.pattern.n

    @property
    def bits(self) -> int:
        """Bits of one position."""
        return (self.spec.pattern.m - 1).bit_length()

    @property
    def position_bytes(self) -> int:
        """Size of the sparse metadata in bytes."""
        return -(-self.slots * self.bits // 8)

    @property
    def rows(self) -> int:
        """X rows worked on at a time; a multiple of 8, so that chunks end on a byte."""
        return 8 * max(1, CHUNK // (8 * self.spec.pattern.m * max(1, self.behind)))


def kept_values(array: Array, layout: Layout) -> Iterator[tuple[Array, int]]:
    """The values of all slots in order, and how many -0.0 were dropped, by chunks."""
    for groups in _group_chunks(array, layout):
        values = groups.reshape(-1).take(_slots(groups, layout))
        # All non-zeros are kept, so what else has bits and is gone was a -0.0.
        dropped = np.count_nonzero(_bits(groups)) - np.count_nonzero(_bits(values))
        yield values, int(dropped)


def packed_positions(array: Array, layout: Layout) -> Iterator[npt.NDArray[np.uint8]]:
    """The sparse metadata, chunk by chunk."""
    m = layout.spec.pattern.m
    for groups in _group_chunks(array, layout):
        if layout.spec.pattern == TWO_FOUR and len(groups) % 2 == 0:
            yield _two_four_bytes().take(_filled(groups, layout))
            continue
        slots = _slots(groups, layout)
        positions = slots & (m - 1) if m & (m - 1) == 0 else slots % m
        yield pack_bits(positions, layout.bits)


def decode(values: Array, packed: npt.NDArray[np.uint8], layout: Layout) -> Array:
    """Put kept values back in their places; all others are +0.

    Raises:
        BadPositionsError: A position is not in its group, not above the one before it,
            or the bits after the last one are not zero.
    """
    pattern, behind = layout.spec.pattern, layout.behind
    dense = np.zeros((layout.groups // max(1, behind), pattern.m, behind), values.dtype)
    words, raw = _bits(dense), _bits(values).reshape(-1, pattern.n)
    for start in range(0, len(dense), layout.rows):
        rows = words[start : start + layout.rows]
        first, count = start * behind, len(rows) * behind
        begin = first * pattern.n * layout.bits // 8
        end = begin - (-count * pattern.n * layout.bits // 8)
        positions = unpack_bits(packed[begin:end], count * pattern.n, layout.bits)
        positions = positions.reshape(count, pattern.n)
        _check(positions, layout, first)
        flat = np.zeros(count * pattern.m, words.dtype)
        base = np.arange(0, flat.size, pattern.m)[:, None]
        flat[(base + positions).reshape(-1)] = raw[first : first + count].reshape(-1)
        rows[...] = flat.reshape(-1, behind, pattern.m).swapaxes(1, 2)
    return dense.reshape(layout.shape)


def pack_bits(positions: Array, bits: int) -> npt.NDArray[np.uint8]:
    """Pack numbers of ``bits`` bits, the first one into the lowest bits."""
    if bits in (1, 2, 4, 8):
        per_byte = 8 // bits
        padded = np.zeros(-(-positions.size // per_byte) * per_byte, np.uint8)
        padded[: positions.size] = positions
        lanes = padded.reshape(-1, per_byte)
        packed = lanes[:, 0].copy()
        for lane in range(1, per_byte):
            packed |= lanes[:, lane] << np.uint8(lane * bits)
        return packed
    spread = (positions[:, None] >> np.arange(bits)) & 1
    return np.packbits(spread.astype(np.uint8), bitorder="little")


def unpack_bits(packed: npt.NDArray[np.uint8], count: int, bits: int) -> Array:
    """The first ``count`` numbers of ``bits`` bits.

    Raises:
        BadPositionsError: The bits after the last number are not zero.
    """
    if bits in (1, 2, 4, 8):
        lanes = np.empty((packed.size, 8 // bits), np.uint8)
        for lane in range(8 // bits):
            lanes[:, lane] = (packed >> (lane * bits)) & ((1 << bits) - 1)
        found: Array = lanes.reshape(-1)
        rest = found[count:]
    else:
        spread = np.unpackbits(packed, bitorder="little")
        rest = spread[count * bits :]
        weights = 1 << np.arange(bits, dtype=np.int32)
        found = spread[: count * bits].reshape(-1, bits) @ weights
    if rest.any():
        raise BadPositionsError("the bits after the last position are not zero")
    return found[:count]


def _group_chunks(array: Array, layout: Layout) -> Iterator[Array]:
    """Groups as rows of M, in (X, B) order, a bounded number at a time."""
    pattern, behind = layout.spec.pattern, layout.behind
    view = array.reshape(layout.groups // max(1, behind), pattern.m, behind)
    for start in range(0, len(view), layout.rows):
        rows = view[start : start + layout.rows]
        if behind == 1:
            yield rows.reshape(-1, pattern.m)
            continue
        # Member by member: 2.5 times as fast as a copy with swapped axes.
        groups = np.empty((len(rows), behind, pattern.m), array.dtype)
        for member in range(pattern.m):
            groups[:, :, member] = rows[:, member, :]
        yield groups.reshape(-1, pattern.m)


def _slots(groups: Array, layout: Layout) -> npt.NDArray[np.intp]:
    """Flat index of each kept slot: the non-zeros, filled up with the first zeros.

    NumPy finds set flags four times faster than it selects by them, hence indices.
    """
    n, m = layout.spec.pattern.n, layout.spec.pattern.m
    keep: npt.NDArray[np.bool_]
    if 8 % m == 0 and groups.size % 8 == 0:
        filled = _filled(groups, layout)
        keep = np.unpackbits(filled, bitorder="little").view(np.bool_)
    else:
        keep = _nonzero(groups)
        missing = n - np.count_nonzero(keep, axis=1, keepdims=True)
        if missing.any():
            zeros_so_far = np.cumsum(~keep, axis=1, dtype=np.int32)
            keep |= zeros_so_far <= missing
    slots = np.flatnonzero(keep)
    if slots.size != len(groups) * n:
        raise ValueError(TOO_MANY)
    return slots


def _filled(groups: Array, layout: Layout) -> npt.NDArray[np.uint8]:
    """The kept slots as flags, 8 / M groups in a byte."""
    pattern = layout.spec.pattern
    flags = np.packbits(_nonzero(groups), bitorder="little")
    filled = _filled_bytes(pattern.n, pattern.m).take(flags)
    if not filled.all():  # the table's mark for a group that cannot be encoded
        raise ValueError(TOO_MANY)
    return filled


def _nonzero(values: Array) -> npt.NDArray[np.bool_]:
    bits = _bits(values)
    sign = _sign(values.dtype)
    nonzero: npt.NDArray[np.bool_] = (bits & ~sign if sign else bits) != 0
    return nonzero


def _sign(dtype: np.dtype[Any]) -> Any:
    """The bits of -0.0, or 0 for a type that has no negative zero."""
    signed_zero = "float" in dtype.name and "fnuz" not in dtype.name
    word = np.dtype(f"u{dtype.itemsize}").type
    return word(1 << (8 * dtype.itemsize - 1)) if signed_zero else word(0)


def _bits(values: Array) -> Array:
    return values.view(f"u{values.dtype.itemsize}")


@functools.cache
def _filled_bytes(n: int, m: int) -> npt.NDArray[np.uint8]:
    """For each byte of 8 / M groups' flags: the same, each group filled up to N.

    0 where a group has more than N; no byte of full groups is 0.
    """
    table = np.arange(256, dtype=np.uint8)
    for byte in range(256):
        for group in range(0, 8, m):
            for bit in range(group, group + m):
                held = (int(table[byte]) >> group) & ((1 << m) - 1)
                if held.bit_count() < n:
                    table[byte] |= np.uint8(1 << bit)
        if int(table[byte]).bit_count() != n * 8 // m:
            table[byte] = 0
    return table


@functools.cache
def _two_four_bytes() -> npt.NDArray[np.uint8]:
    """For each byte of two 2:4 groups' flags: their four positions, packed."""
    table = np.zeros(256, np.uint8)
    for byte in range(256):
        kept = [bit % 4 for bit in range(8) if byte >> bit & 1]
        table[byte] = sum(at << 2 * slot for slot, at in enumerate(kept[:4]))
    return table


def _check(positions: Array, layout: Layout, first_group: int) -> None:
    """Each position lies in its group and above the one before."""
    pattern = layout.spec.pattern
    bad = (positions[:, 1:] <= positions[:, :-1]).any(axis=1)
    if pattern.m & (pattern.m - 1):
        bad |= (positions >= pattern.m).any(axis=1)
    if bad.any():
        group = int(bad.argmax())
        raise BadPositionsError(
            f"group {first_group + group} has positions {positions[group].tolist()}, "
            f"expected {pattern.n} rising ones below {pattern.m}"
        )


def differing_bits(before: Array, after: Array) -> int | None:
    """How many -0.0 became +0.0; None if anything else changed."""
    if before.dtype != after.dtype or before.shape != after.shape:
        return None
    one, other = (_bits(np.ascontiguousarray(array)) for array in (before, after))
    if np.array_equal(one, other):
        return 0
    changed = one != other
    lost = one[changed] == _sign(before.dtype)
    return int(lost.size) if lost.all() and not other[changed].any() else None
