"""One-shot pruning of one tensor: block by block, as its file is being copied."""

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.errors import NonFiniteError
from step_cli.nm import kernels
from step_cli.nm.code_sizes import CodeSizes
from step_cli.nm.dtypes import RawBits, dtype_info
from step_cli.nm.groups import Mask, index_of
from step_cli.nm.mask import (
    FLOATS,
    INTEGERS,
    float_magnitude,
    keep_highest,
    magnitude_sum,
)
from step_cli.nm.pattern import NMSpec
from step_cli.nm.tensor_data import TensorData
from step_cli.nm.threads import in_order

Array = npt.NDArray[Any]

BLOCK = 1 << 20  # weights that are pruned, and then written, at a time
PIECE = 1 << 18  # weights whose work stays in the cache
WORTH_A_THREAD = 1 << 22  # weights
PRUNABLE = FLOATS | INTEGERS


@dataclass
class Pruned:
    """What pruning did.

    Attributes:
        elements: Weights looked at.
        changed: Weights set to zero that were not.
        nonzeros: Non-zero weights left.
        before: Sum of magnitudes before.
        after: Sum of magnitudes after.
    """

    elements: int = 0
    changed: int = 0
    nonzeros: int = 0
    before: float = 0.0
    after: float = 0.0

    @property
    def density(self) -> float:
        """Share of weights that are not zero."""
        return self.nonzeros / self.elements if self.elements else 0.0

    @property
    def retained(self) -> float:
        """Share of magnitude kept; all of nothing is all."""
        return self.after / self.before if self.before else 1.0

    def add(self, other: "Pruned") -> None:
        """Count another part in."""
        self.elements += other.elements
        self.changed += other.changed
        self.nonzeros += other.nonzeros
        self.before += other.before
        self.after += other.after


class OneShot:
    """Prunes one tensor to its N:M spec by magnitude.

    A group with at most N non-zeros is left as it is, bit for bit. The magnitude of a
    code is that of the number it stands for.

    Args:
        data: What to prune.
        spec: The pattern and its axis.
        name: Of the tensor.
        seed: Prune at random instead.
        keep: Prune by this mask instead, of the shape of the weights.
    """

    def __init__(
        self,
        data: TensorData,
        spec: NMSpec,
        *,
        name: str,
        seed: int | None = None,
        keep: Mask | None = None,
    ) -> None:
        self.data, self.spec, self.name = data, spec, name
        self._key = None if seed is None else _key(seed, name)
        self._limits = dtype_info(data.dtype)
        self._float = data.dtype in FLOATS
        self._code_sizes = CodeSizes(data, name)
        codes = np.ascontiguousarray(data.array)
        inner = math.prod(codes.shape[spec.axis + 1 :])
        codes = codes.view(self._limits.unsigned) if self._float else codes
        self._codes: Array = codes.reshape(-1, spec.pattern.m, inner)
        self._keep = None if keep is None else keep.reshape(self._codes.shape)
        self.done = Pruned()

    def blocks(self) -> Iterator[Array]:
        """The pruned tensor in contiguous pieces, in order; counts in ``done``.

        A block is overwritten once the next one is taken.

        Raises:
            NonFiniteError: A weight is NaN or infinite.
        """
        count, m, inner = self._codes.shape
        step = max(1, BLOCK // (m * inner))
        buffers: list[Array] = []
        tasks = (
            partial(self._block, first, min(first + step, count), buffers)
            for first in range(0, count, step)
        )
        threads = self._codes.size >= WORTH_A_THREAD
        for block, pruned in in_order(tasks, threads=threads):
            self.done.add(pruned)
            yield block
            buffers.append(block)

    def _block(
        self, first: int, last: int, buffers: list[Array]
    ) -> tuple[Array, Pruned]:
        codes = self._codes[first:last]
        given = None if self._keep is None else self._keep[first:last]
        out, total = _taken(buffers, codes), Pruned()
        if self._key is None and given is None and not self._code_sizes.differ:
            n, dtype = self.spec.pattern.n, self.data.dtype
            sums = kernels.prune(codes, out, n, self._limits, dtype)
            if sums is not None:
                common = self._code_sizes.common
                sizes = sums.before * common, sums.after * common
                done = Pruned(codes.size, sums.changed, sums.nonzeros, *sizes)
                return out.reshape(-1), done
        rows, m, inner = codes.shape
        step, width = max(1, PIECE // (m * inner)), max(1, PIECE // m)
        for x in range(0, rows, step):
            for b in range(0, inner, width):
                at = slice(x, x + step), slice(None), slice(b, b + width)
                origin = (first + x) * m * inner + b
                wanted = None if given is None else given[at]
                total.add(self._piece(codes[at], out[at], wanted, origin))
        return out.reshape(-1), total

    def _piece(
        self, codes: Array, out: Array, given: Mask | None, origin: int
    ) -> Pruned:
        """Prune (x, M, b) into ``out``; ``origin`` is its row-major position."""
        zero = None if self._float else self._zero(codes, origin)
        magnitude = self._magnitude(codes, zero, origin)
        nonzero = magnitude != 0
        sizes, common = None, self._code_sizes.common
        if self._code_sizes.differ:
            sizes = self._code_sizes.of(codes, zero, self._positions(codes, origin))
        if given is None:
            scores = self._scores(magnitude, sizes, nonzero, origin)
            given = keep_highest(scores, self.spec.pattern, 1)
        keep = given | ~nonzero  # what is zero stays as it is: -0.0 keeps its sign
        if zero is None:
            np.multiply(codes, keep, out=out)
        else:
            np.copyto(out, np.where(keep, codes, zero.astype(codes.dtype)))
        nonzeros = int(np.count_nonzero(nonzero))
        changed = int(keep.size - np.count_nonzero(keep))
        if sizes is None:
            before, after = self._sum(magnitude), self._sum(magnitude * keep)
        else:
            before, after = _total(sizes), _total(sizes * keep)
        before, after = before * common, after * common
        return Pruned(codes.size, changed, nonzeros - changed, before, after)

    def _magnitude(self, codes: Array, zero: Array | None, origin: int) -> RawBits:
        """Unsigned integers that rise as the magnitude does."""
        if zero is not None:
            return np.abs(codes.astype(np.int64) - zero).astype(np.uint32)
        magnitude = float_magnitude(codes)
        self._check_finite(magnitude, codes, origin)
        return magnitude

    def _scores(
        self, magnitude: RawBits, sizes: Array | None, nonzero: Mask, origin: int
    ) -> RawBits:
        if self._key is None:
            if sizes is None:
                return magnitude
            # A code that a scale of 0 makes zero still counts as one that is not.
            bits: RawBits = sizes.view(np.uint32) + nonzero.astype(np.uint32)
            return bits
        random = np.random.Generator(
            np.random.Philox(key=self._key, counter=origin << 64)
        )
        x, m, b = magnitude.shape
        drawn = random.integers(0, 2**31, (m, x, b), np.uint32).swapaxes(0, 1)
        # Any weight before any zero: then a group that complies loses none.
        first: RawBits = drawn | (nonzero.astype(np.uint32) << np.uint32(31))
        return first

    def _sum(self, magnitude: RawBits) -> float:
        if self._float:
            return magnitude_sum(magnitude, self.data.dtype)
        return float(magnitude.sum(dtype=np.int64))

    def _check_finite(self, magnitude: RawBits, codes: Array, origin: int) -> None:
        # Where NaN is a code of its own, the one of -0.0 elsewhere, the sign decides.
        by_code = self._limits.nan is not None
        if self._limits.nonfinite(codes if by_code else magnitude) is None:
            return
        found = self._limits.nonfinite(codes if by_code else float_magnitude(codes))
        assert found is not None
        x, member, b = (int(i[0]) for i in np.nonzero(found))
        _, m, inner = self._codes.shape
        index = index_of(origin + (x * m + member) * inner + b, self.data.array.shape)
        raise NonFiniteError(
            f"NaN or infinity at {list(index)}, which cannot be ordered; "
            "find out where training diverged",
            tensor=self.name,
        )

    def _zero(self, codes: Array, origin: int) -> Array:
        """Which integer code means zero: one, or one for each weight of a piece."""
        if self.data.zero is None:
            return np.zeros(1, np.int64)
        positions = self._positions(codes, origin)
        return self.data.zero_codes(positions).astype(np.int64)

    def _positions(self, codes: Array, origin: int) -> npt.NDArray[np.int64]:
        """The row-major positions of a piece's weights."""
        _, m, inner = self._codes.shape
        x, member, b = np.ogrid[: codes.shape[0], : codes.shape[1], : codes.shape[2]]
        found: npt.NDArray[np.int64] = origin + (x * m + member) * inner + b
        return found


def _total(sizes: Array) -> float:
    return float(sizes.sum(dtype=np.float64))


def _taken(buffers: list[Array], like: Array) -> Array:
    """An array for a block: one that is done with, as fresh memory costs more."""
    try:
        buffer = buffers.pop()
    except IndexError:
        return np.empty_like(like)
    return buffer[: like.size].reshape(like.shape)


def _key(seed: int, name: str) -> int:
    """128 bits that differ for each tensor, so that equal shapes get other masks."""
    digest = hashlib.sha256(f"{seed} {name}".encode(errors="surrogatepass"))
    return int.from_bytes(digest.digest()[:16], "little")
