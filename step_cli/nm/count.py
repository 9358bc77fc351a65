"""Does a tensor hold its pattern? Counted group by group, none left out, no torch."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain, groupby
from operator import itemgetter
from typing import TypeVar

import numpy as np

from step_cli.nm import kernels
from step_cli.nm.dtypes import RawBits
from step_cli.nm.groups import Groups, Piece, Scratch, count_in_groups
from step_cli.nm.pattern import NMSpec
from step_cli.nm.tensor_data import TensorData
from step_cli.nm.threads import in_order, own_scratch

First = TypeVar("First", int, tuple[int, int])

WORTH_A_THREAD = 1 << 24  # weights; below it, starting one costs more than it saves
TASK_BYTES = 1 << 24  # some tasks are ahead of the one whose result is due


@dataclass(slots=True)
class TensorCounts:
    """What was counted in one tensor, or in a part of it.

    Attributes:
        violation: Row-major position of the first weight of the first group that breaks
            the pattern, and the non-zeros of that group; None if no group does.
        nonfinite_at: Row-major position of the first NaN or infinity, or None.
    """

    groups: int = 0
    violations: int = 0
    elements: int = 0
    nonzeros: int = 0
    violation: tuple[int, int] | None = None
    nonfinite: int = 0
    nonfinite_at: int | None = None

    def add(self, other: "TensorCounts") -> None:
        """Take in what was counted in another part of the tensor."""
        self.groups += other.groups
        self.violations += other.violations
        self.elements += other.elements
        self.nonzeros += other.nonzeros
        self.violation = _first(self.violation, other.violation)
        self.nonfinite += other.nonfinite
        self.nonfinite_at = _first(self.nonfinite_at, other.nonfinite_at)


@dataclass(frozen=True)
class TensorToCheck:
    """One tensor to count: its data, what it promises, and how strictly."""

    data: TensorData
    spec: NMSpec
    exact: bool = False


def count_tensor(tensor: TensorToCheck) -> TensorCounts:
    """Count one tensor."""
    return next(iter(count_tensors([tensor])))


def count_tensors(tensors: Iterable[TensorToCheck]) -> Iterator[TensorCounts]:
    """Count tensors on all cores, and yield the results in the order given.

    ``tensors`` is advanced only a little ahead, so that its data may be loaded lazily.
    """
    seen, waiting = 0, iter(tensors)
    for tensor in waiting:
        seen += tensor.data.array.size
        if seen >= WORTH_A_THREAD:
            break
        groups = _groups(tensor)
        yield _count(groups, groups.whole, tensor)
    else:
        return
    counted = in_order(_tasks(chain([tensor], waiting)))
    for _, parts in groupby(counted, key=itemgetter(0)):
        yield _sum(part for _, part in parts)


def _groups(tensor: TensorToCheck) -> Groups:
    return Groups(tensor.data, tensor.spec.pattern.m, tensor.spec.axis)


def _tasks(
    tensors: Iterable[TensorToCheck],
) -> Iterator[Callable[[], tuple[int, TensorCounts]]]:
    """The parts of all tensors, each to be counted under the number of its tensor."""
    for number, tensor in enumerate(tensors):
        groups = _groups(tensor)
        for part in groups.pieces(TASK_BYTES):
            yield partial(_numbered, number, groups, part, tensor)


def _numbered(
    number: int, groups: Groups, part: Piece, tensor: TensorToCheck
) -> tuple[int, TensorCounts]:
    return number, _count(groups, part, tensor)


def _count(groups: Groups, part: Piece, tensor: TensorToCheck) -> TensorCounts:
    clean = _clean(groups, part, tensor)
    if clean is not None:
        return clean
    scratch, total = own_scratch(), TensorCounts()
    for piece in groups.pieces(of=part):
        magnitude = groups.magnitude(piece, scratch)
        total.add(_count_piece(groups, piece, magnitude, tensor, scratch))
    return total


def _clean(groups: Groups, piece: Piece, tensor: TensorToCheck) -> TensorCounts | None:
    """The counts of a piece without a fault; None if it has one, or may have."""
    if not groups.zero_is_zero:
        return None
    codes = groups.codes_of(piece)
    found = kernels.count(codes, tensor.spec.pattern.n, groups.bits)
    if found is None or found.over or found.nonfinite or (tensor.exact and found.under):
        return None
    size = codes.size
    return TensorCounts(groups=size // groups.m, elements=size, nonzeros=found.nonzeros)


def _count_piece(
    groups: Groups,
    piece: Piece,
    magnitude: RawBits,
    tensor: TensorToCheck,
    scratch: Scratch,
) -> TensorCounts:
    nonfinite, nonfinite_at = 0, None
    found = groups.bits.nonfinite(magnitude)
    if found is not None:
        nonfinite = int(np.count_nonzero(found))
        x, member, b = np.unravel_index(int(found.argmax()), found.shape)
        nonfinite_at = groups.position(piece, int(x), int(member), int(b))
    nonzero = scratch.take("nonzero", np.bool_, magnitude.shape)
    np.not_equal(magnitude, 0, out=nonzero)
    nonzeros = int(np.count_nonzero(nonzero))
    counts = count_in_groups(nonzero, scratch)
    n, exact = tensor.spec.pattern.n, tensor.exact
    violations, violation = 0, None
    # Reading the extremes is cheaper than writing a comparison, and mostly enough.
    if counts.most > n or (exact and counts.fewest < n):
        each = counts.each()
        bad = each != n if exact else each > n
        violations = int(np.count_nonzero(bad))
        x, b = divmod(int(bad.argmax()), bad.shape[1])
        violation = (groups.position(piece, x, 0, b), int(each[x, b]))
    return TensorCounts(
        groups=counts.words.size,
        violations=violations,
        elements=nonzero.size,
        nonzeros=nonzeros,
        violation=violation,
        nonfinite=nonfinite,
        nonfinite_at=nonfinite_at,
    )


def _sum(parts: Iterable[TensorCounts]) -> TensorCounts:
    total = TensorCounts()
    for part in parts:
        total.add(part)
    return total


def _first(one: First | None, other: First | None) -> First | None:
    if one is None or other is None:
        return one if other is None else other
    return min(one, other)
