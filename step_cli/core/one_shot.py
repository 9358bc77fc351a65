"""One-shot pruning of one tensor: block by block, as its file is being copied."""

import hashlib
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.core.bits import Codes, bits_of
from step_cli.core.groups import Weights, index_of
from step_cli.core.magnitude import FLOATS, INTEGERS, float_magnitude, magnitude_sum
from step_cli.core.mask_numpy import Mask, from_planes, keep_planes, to_planes
from step_cli.core.plan import LayerPlan
from step_cli.errors import NonFiniteError

Array = npt.NDArray[Any]

BLOCK = 1 << 20  # weights that are pruned, and then written, at a time
PIECE = 1 << 18  # weights whose work stays in the cache
WORTH_A_THREAD = 1 << 22  # weights
PRUNABLE = FLOATS | INTEGERS


@dataclass
class Pruned:
    """What pruning did to a tensor, or to a part of it.

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
    """Prunes ``weights`` to ``plan`` by magnitude, or at random with a ``seed``.

    A group with at most N non-zeros is left as it is, bit for bit.
    """

    def __init__(
        self, weights: Weights, plan: LayerPlan, *, name: str, seed: int | None = None
    ) -> None:
        self.weights, self.plan, self.name = weights, plan, name
        self._key = None if seed is None else _key(seed, name)
        self._limits = bits_of(weights.dtype)
        self._float = weights.dtype in FLOATS
        codes = np.ascontiguousarray(weights.array)
        inner = math.prod(codes.shape[plan.axis + 1 :])
        codes = codes.view(self._limits.unsigned) if self._float else codes
        self._codes: Array = codes.reshape(-1, plan.pattern.m, inner)
        self.done = Pruned()

    def blocks(self) -> Iterator[Array]:
        """The pruned tensor in contiguous pieces, in order; counts in ``done``.

        Raises:
            NonFiniteError: A weight is NaN or infinite.
        """
        count, m, inner = self._codes.shape
        step = max(1, BLOCK // (m * inner))
        tasks = [
            partial(self._block, first, min(first + step, count))
            for first in range(0, count, step)
        ]
        for block, pruned in _in_order(tasks, self._codes.size):
            self.done.add(pruned)
            yield block

    def _block(self, first: int, last: int) -> tuple[Array, Pruned]:
        codes = self._codes[first:last]
        out, total = np.empty_like(codes), Pruned()
        rows, m, inner = codes.shape
        step, width = max(1, PIECE // (m * inner)), max(1, PIECE // m)
        for x in range(0, rows, step):
            for b in range(0, inner, width):
                at = slice(x, x + step), slice(None), slice(b, b + width)
                origin = (first + x) * m * inner + b
                total.add(self._piece(codes[at], out[at], origin))
        return out.reshape(-1), total

    def _piece(self, codes: Array, out: Array, origin: int) -> Pruned:
        """Prune (x, M, b) into ``out``; ``origin`` is its row-major position."""
        zero = np.zeros((), np.int64) if self._float else self._zero(codes, origin)
        if self._float:
            magnitude = float_magnitude(to_planes(codes))
            self._check_finite(magnitude, codes, origin)
        else:
            distance = np.abs(codes.astype(np.int64) - zero)
            magnitude = to_planes(distance.astype(np.uint32))
        nonzero = magnitude != 0
        scores = self._scores(magnitude, nonzero, origin)
        keep = keep_planes(scores, self.plan.pattern.n)
        # What is zero stays as it is, so -0.0 keeps its sign.
        np.logical_or(keep, ~nonzero, out=keep)
        mask = np.empty(codes.shape, np.bool_)
        from_planes(keep, mask)
        if self._float:
            np.multiply(codes, mask, out=out)
        else:
            np.copyto(out, np.where(mask, codes, zero.astype(codes.dtype)))
        before, after = self._sums(magnitude, keep)
        nonzeros = int(np.count_nonzero(nonzero))
        changed = int(keep.size - np.count_nonzero(keep))
        return Pruned(codes.size, changed, nonzeros - changed, before, after)

    def _scores(self, magnitude: Codes, nonzero: Mask, origin: int) -> Codes:
        if self._key is None:
            return magnitude
        random = np.random.Generator(
            np.random.Philox(key=self._key, counter=origin << 64)
        )
        drawn = random.integers(0, 2**31, magnitude.shape, np.uint32)
        # Any weight before any zero: then a group that complies loses none.
        first: Codes = drawn | (nonzero.astype(np.uint32) << np.uint32(31))
        return first

    def _sums(self, magnitude: Codes, keep: Mask) -> tuple[float, float]:
        left = np.multiply(magnitude, keep)
        if self._float:
            dtype = self.weights.dtype
            return magnitude_sum(magnitude, dtype), magnitude_sum(left, dtype)
        return float(magnitude.sum(dtype=np.int64)), float(left.sum(dtype=np.int64))

    def _check_finite(self, magnitude: Codes, codes: Array, origin: int) -> None:
        # Where NaN is a code of its own, the one of -0.0 elsewhere, the sign tells.
        by_code = self._limits.nan is not None
        if self._limits.nonfinite(codes if by_code else magnitude) is None:
            return
        bits = codes if by_code else float_magnitude(codes)
        found = self._limits.nonfinite(bits)
        assert found is not None
        x, member, b = (int(i[0]) for i in np.nonzero(found))
        _, m, inner = self._codes.shape
        index = index_of(
            origin + (x * m + member) * inner + b, self.weights.array.shape
        )
        raise NonFiniteError(
            f"NaN or infinity at {list(index)}, which has no rank; "
            "find out where training diverged",
            tensor=self.name,
        )

    def _zero(self, codes: Array, origin: int) -> Array:
        """Which integer code means zero: one, or one for each weight of a piece."""
        zero, axis = self.weights.zero, self.weights.zero_axis
        if zero is None:
            return np.zeros((), np.int64)
        zero = zero.astype(np.int64)
        if axis is None or zero.size == 1:
            return zero.reshape(-1)[:1].reshape(())
        _, m, inner = self._codes.shape
        x, member, b = np.ogrid[: codes.shape[0], : codes.shape[1], : codes.shape[2]]
        position = origin + (x * m + member) * inner + b
        behind = math.prod(self.weights.array.shape[axis + 1 :])
        of_each: Array = zero[position // behind % zero.size]
        return of_each


def _key(seed: int, name: str) -> int:
    """128 bits that differ for each tensor, so that equal shapes get other masks."""
    digest = hashlib.sha256(f"{seed} {name}".encode(errors="surrogatepass"))
    return int.from_bytes(digest.digest()[:16], "little")


def _in_order(
    tasks: Sequence[Callable[[], tuple[Array, Pruned]]], elements: int
) -> Iterator[tuple[Array, Pruned]]:
    """Run tasks on all cores, a few ahead of the one whose result is wanted."""
    if elements < WORTH_A_THREAD:
        yield from (task() for task in tasks)
        return
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[tuple[Array, Pruned]]] = deque()
        for task in tasks:
            ahead.append(pool.submit(task))
            if len(ahead) > 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
