"""What a broken pattern looks like, and where two masks differ.

A pattern looks broken along the wrong axis, where another one was meant, or where a
layer is dense.
"""

from dataclasses import dataclass

import numpy as np

from step_cli.nm.count import TensorToCheck
from step_cli.nm.groups import Groups, Scratch, count_in_groups, index_of
from step_cli.nm.pattern import NMPattern
from step_cli.nm.tensor_data import TensorData

# The patterns that people train; the tightest that holds is the one they meant.
USUAL = tuple(
    NMPattern(n, m)
    for n, m in sorted(
        ((n, m) for m in (2, 4, 8, 16, 32) for n in (1, 2, 4, 8, 16) if 2 * n <= m),
        key=lambda pair: (pair[0] / pair[1], pair[1]),
    )
)


# Magnitudes up to 2**-25 become zero in fp16, which rounds to even.
ZERO_IN_FP16 = {"float64": 0x3E60 << 48, "float32": 0x3300 << 16, "bfloat16": 0x3300}


def holds_as_fp16(tensor: TensorToCheck) -> bool:
    """Whether the pattern would hold after a cast to fp16, which drops tiny values."""
    tiny = ZERO_IN_FP16.get(tensor.data.dtype, 0)
    spec = tensor.spec
    return tiny > 0 and holds_pattern(tensor, spec.pattern, spec.axis, above=tiny)


def axis_that_holds(tensor: TensorToCheck) -> int | None:
    """Another axis along which the pattern holds, or None."""
    pattern, shape = tensor.spec.pattern, tensor.data.array.shape
    for axis, size in enumerate(shape):
        other = axis != tensor.spec.axis and size % pattern.m == 0
        if other and holds_pattern(tensor, pattern, axis):
            return axis
    return None


def pattern_that_holds(tensor: TensorToCheck) -> NMPattern | None:
    """The tightest usual pattern that holds along the same axis, or None."""
    axis = tensor.spec.axis
    size = tensor.data.array.shape[axis]
    for pattern in USUAL:
        if size % pattern.m == 0 and holds_pattern(tensor, pattern, axis):
            return pattern
    return None


def holds_pattern(
    tensor: TensorToCheck, pattern: NMPattern, axis: int, above: int = 0
) -> bool:
    """Whether a tensor holds ``pattern`` along ``axis``, whatever it promises.

    Magnitudes, as codes, count as zero unless they are ``above``.
    """
    groups, scratch = Groups(tensor.data, pattern.m, axis), Scratch()
    for piece in groups.pieces():  # stops at the first bad one
        nonzero = groups.magnitude(piece, scratch) > above
        if count_in_groups(nonzero, scratch).most > pattern.n:
            return False
    return True


def holds_paired(tensor: TensorToCheck, pattern: NMPattern, axis: int) -> bool:
    """Whether a tensor holds ``pattern`` along ``axis`` in pairs, as fp4 needs it.

    Weights come in pairs, and of each M/2 pairs at most N/2 are not zero.
    """
    groups, scratch = Groups(tensor.data, pattern.m, axis), Scratch()
    for piece in groups.pieces():
        nonzero = groups.magnitude(piece, scratch) != 0
        pairs = nonzero[:, 0::2] | nonzero[:, 1::2]
        if 2 * int(pairs.sum(axis=1).max(initial=0)) > pattern.n:
            return False
    return True


@dataclass(frozen=True)
class Mismatch:
    """How many weights one mask keeps and the other drops, and where the first is."""

    count: int
    index: tuple[int, ...]


def mismatch(one: TensorData, other: TensorData) -> Mismatch | None:
    """Where two tensors of one shape keep other weights; None if nowhere."""
    ours, theirs = (
        Groups(one, 1, one.array.ndim - 1),
        Groups(other, 1, other.array.ndim - 1),
    )
    scratches = Scratch(), Scratch()
    count, first = 0, None
    for piece in ours.pieces():
        kept = ours.magnitude(piece, scratches[0]) != 0
        differs = kept != (theirs.magnitude(piece, scratches[1]) != 0)
        found = int(np.count_nonzero(differs))
        if found and first is None:
            first = ours.position(piece, int(differs.argmax()), 0, 0)
        count += found
    return None if first is None else Mismatch(count, index_of(first, ours.shape))
