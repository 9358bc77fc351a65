"""Does a tensor hold its pattern? Counted group by group, none left out, no torch."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from step_cli.nm import kernels
from step_cli.nm.dtypes import Codes
from step_cli.nm.groups import (
    Groups,
    Piece,
    Scratch,
    Weights,
    count_in_groups,
)
from step_cli.nm.pattern import NMSpec

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

First = TypeVar("First", int, tuple[int, int])

WORTH_A_THREAD = 1 << 24  # weights; below it, starting one costs more than it saves
TASK_BYTES = 1 << 25
AHEAD_BYTES = 1 << 27  # of data read ahead of what is being counted


@dataclass(slots=True)
class Tally:
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

    def add(self, other: "Tally") -> None:
        """Take in what was counted in another part of the tensor."""
        self.groups += other.groups
        self.violations += other.violations
        self.elements += other.elements
        self.nonzeros += other.nonzeros
        self.violation = _first(self.violation, other.violation)
        self.nonfinite += other.nonfinite
        self.nonfinite_at = _first(self.nonfinite_at, other.nonfinite_at)


@dataclass(frozen=True)
class Job:
    """One tensor to count: its data, what it promises, and how strictly."""

    weights: Weights
    plan: NMSpec
    exact: bool = False


def tally(job: Job) -> Tally:
    """Count one tensor."""
    return next(iter(tally_all([job])))


def tally_all(jobs: Iterable[Job]) -> Iterator[Tally]:
    """Count tensors on all cores, and yield the results in the order given.

    ``jobs`` is advanced only a little ahead, so that its data may be loaded lazily.
    """
    waiting: deque[tuple[int, list[Callable[[], Tally]]]] = deque()
    threads = _Threads()
    try:
        ahead = 0
        for job in jobs:
            size = job.weights.array.nbytes
            waiting.append((size, threads.start(job)))
            ahead += size
            while waiting and ahead > AHEAD_BYTES:
                done, parts = waiting.popleft()
                ahead -= done
                yield _sum(parts)
        while waiting:
            yield _sum(waiting.popleft()[1])
    finally:
        threads.stop()


class _Threads:
    """Counts in this thread while there is little to do, then on all cores.

    NumPy releases the interpreter lock while it works, so threads are enough.
    """

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._seen = 0
        self._own = threading.local()

    def start(self, job: Job) -> list[Callable[[], Tally]]:
        """Start to count; each function returned waits for one part of the result."""
        groups = Groups(job.weights, job.plan.pattern.m, job.plan.axis)
        self._seen += groups.elements
        if self._seen < WORTH_A_THREAD:
            counted = self._count(groups, groups.whole, job)
            return [lambda: counted]
        if self._pool is None:
            from concurrent.futures import ThreadPoolExecutor  # takes 10 ms

            self._pool = ThreadPoolExecutor(min(8, os.cpu_count() or 1))
        return [
            self._pool.submit(self._count, groups, task, job).result
            for task in groups.pieces(TASK_BYTES)
        ]

    def stop(self) -> None:
        """End the threads; what nobody waits for is dropped."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _count(self, groups: Groups, task: Piece, job: Job) -> Tally:
        clean = _clean(groups, task, job)
        if clean is not None:
            return clean
        if not hasattr(self._own, "scratch"):
            self._own.scratch = Scratch()
        scratch: Scratch = self._own.scratch
        total = Tally()
        for piece in groups.pieces(of=task):
            magnitude = groups.magnitude(piece, scratch)
            total.add(_count_piece(groups, piece, magnitude, job, scratch))
        return total


def _clean(groups: Groups, piece: Piece, job: Job) -> Tally | None:
    """The counts of a piece without a fault; None if it has one, or may have."""
    if not groups.zero_is_zero:
        return None
    codes = groups.codes_of(piece)
    found = kernels.count(codes, job.plan.pattern.n, groups.bits)
    if found is None or found.over or found.nonfinite or (job.exact and found.under):
        return None
    size = codes.size
    return Tally(groups=size // groups.m, elements=size, nonzeros=found.nonzeros)


def _count_piece(
    groups: Groups, piece: Piece, magnitude: Codes, job: Job, scratch: Scratch
) -> Tally:
    nonfinite, nonfinite_at = 0, None
    found = groups.bits.nonfinite(magnitude)
    if found is not None:
        nonfinite = int(np.count_nonzero(found))
        x, member, b = np.unravel_index(int(found.argmax()), found.shape)
        nonfinite_at = groups.position(piece, int(x), int(member), int(b))
    nonzero = scratch.take("nonzero", np.bool_, magnitude.shape)
    np.not_equal(magnitude, 0, out=nonzero)
    counts = count_in_groups(nonzero, scratch)
    n, exact = job.plan.pattern.n, job.exact
    violations, violation = 0, None
    # Reading the extremes is cheaper than writing a comparison, and mostly enough.
    if counts.most > n or (exact and counts.fewest < n):
        each = counts.each()
        bad = each != n if exact else each > n
        violations = int(np.count_nonzero(bad))
        x, b = divmod(int(bad.argmax()), bad.shape[1])
        violation = (groups.position(piece, x, 0, b), int(each[x, b]))
    return Tally(
        groups=counts.words.size,
        violations=violations,
        elements=nonzero.size,
        nonzeros=counts.total(),
        violation=violation,
        nonfinite=nonfinite,
        nonfinite_at=nonfinite_at,
    )


def _sum(parts: Iterable[Callable[[], Tally]]) -> Tally:
    total = Tally()
    for part in parts:
        total.add(part())
    return total


def _first(one: First | None, other: First | None) -> First | None:
    if one is None or other is None:
        return one if other is None else other
    return min(one, other)
