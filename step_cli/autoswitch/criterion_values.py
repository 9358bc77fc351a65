"""The values of the switch criteria over many steps at once.

`autoswitch.py` says what the criteria are, one step at a time, as training asks them.
Here the same numbers come out of whole columns, bit for bit: sums are taken in the same
order, so a replay decides what the training decided.
"""

import math
from collections import deque
from collections.abc import Callable

import numpy as np

from step_cli.autoswitch.autoswitch import (
    AutoSwitch,
    Criterion,
    Fixed,
    GeometricAutoSwitch,
    RelativeAutoSwitch,
    RelativeNorm,
    Staleness,
)
from step_cli.autoswitch.sample_block import Booleans, Floats, SampleBlock

Values = Callable[[SampleBlock], Floats]


def values_of(criterion: Criterion) -> Values:
    """What computes the tested values of each block in turn; NaN where none."""
    if isinstance(criterion, AutoSwitch):
        means = RunningMeans(criterion.window)
        return lambda block: means.add(changes_of(criterion, block))
    if isinstance(criterion, RelativeAutoSwitch):
        return _Relative(criterion.window)
    if isinstance(criterion, RelativeNorm):
        return _RelativeNorm()
    if isinstance(criterion, Staleness):
        return _Staleness(criterion.window)
    assert isinstance(criterion, Fixed)
    return lambda block: block.step.astype(np.float64)


def passes(criterion: Criterion, values: Floats) -> Booleans:
    """Where ``values`` pass the test, as ``criterion.met`` says for one of them."""
    if isinstance(criterion, Fixed):
        return values >= criterion.step
    assert criterion.threshold is not None
    if criterion.above:
        return values > criterion.threshold
    return values < criterion.threshold


def changes_of(criterion: AutoSwitch, block: SampleBlock) -> Floats:
    """Z_t of each step, the change averaged over coordinates."""
    if isinstance(criterion, GeometricAutoSwitch):
        return geometric_changes(block)
    return arithmetic_changes(block)


def arithmetic_changes(block: SampleBlock) -> Floats:
    """Z_t of Option I."""
    return block.dv_l1 / block.d


def geometric_changes(block: SampleBlock) -> Floats:
    """Z_t of Option II; 0 where nothing changed."""
    # numpy's exp may differ from the C library's in the last bit.
    change = np.array([math.exp(log) for log in block.dv_log.tolist()])
    return np.where(np.isnan(change), 0.0, change)


class RunningMeans:
    """``WindowMean`` over columns.

    Its running total is computed afresh after each ``size`` values, so the values fall
    into rows of that length, and within a row the total is a cumulative sum.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._delay = Delay(size)
        self._row: list[Floats] = []  # what came since the total was last fresh
        self._filled = 0
        self._total = 0.0
        self._seen = 0

    def add(self, values: Floats) -> Floats:
        """The mean at each value, NaN before there are ``size`` of them."""
        gone = self._delay.push(values)
        left = np.where(np.isnan(gone), 0.0, gone)
        totals, start = [], 0
        while start < len(values):
            whole = (len(values) - start) // self._size if not self._filled else 0
            stop = start + (whole or 1) * self._size - self._filled
            piece = slice(start, stop)
            step = self._rows if whole else self._part
            totals.append(step(values[piece], left[piece]))
            start = stop
        found = np.concatenate(totals) / self._size if totals else values[:0]
        found[: max(0, self._size - 1 - self._seen)] = np.nan
        self._seen += len(values)
        return found

    def _part(self, values: Floats, left: Floats) -> Floats:
        """Part of one row."""
        totals: Floats = _cumulative(
            np.array([[self._total]]), values[None], left[None]
        )[0]
        self._row.append(values)
        self._filled += len(values)
        if self._filled == self._size:
            totals[-1] = math.fsum(np.concatenate(self._row).tolist())
            self._row, self._filled = [], 0
        self._total = float(totals[-1])
        return totals

    def _rows(self, values: Floats, left: Floats) -> Floats:
        """Whole rows."""
        rows = values.reshape(-1, self._size)
        fresh = np.array([math.fsum(row) for row in rows.tolist()])
        starts = np.concatenate([[self._total], fresh[:-1]])
        totals = _cumulative(starts[:, None], rows, left.reshape(-1, self._size))
        totals[:, -1] = fresh
        self._total = float(fresh[-1])
        return totals.reshape(-1)


def _cumulative(starts: Floats, values: Floats, left: Floats) -> Floats:
    """In each row: start - left[0] + values[0], that - left[1] + values[1], ..."""
    terms = np.empty((len(values), 2 * values.shape[1] + 1))
    terms[:, :1], terms[:, 1::2], terms[:, 2::2] = starts, -left, values
    totals: Floats = np.cumsum(terms, axis=1)[:, 2::2]
    return totals


class Delay:
    """Gives back what came ``size`` values ago."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._pieces: deque[Floats] = deque()
        self._held = 0

    def push(self, values: Floats) -> Floats:
        """The values that came ``size`` before these; NaN where there were none."""
        self._pieces.append(values)
        self._held += len(values)
        old = []
        while self._held > self._size:
            piece = self._pieces.popleft()
            extra = min(self._held - self._size, len(piece))
            old.append(piece[:extra])
            self._held -= extra
            if extra < len(piece):
                self._pieces.appendleft(piece[extra:])
        missing = len(values) - sum(map(len, old))
        return np.concatenate([np.full(missing, np.nan), *old])


class _Relative:
    def __init__(self, window: int) -> None:
        self._change, self._norm = RunningMeans(window), RunningMeans(window)

    def __call__(self, block: SampleBlock) -> Floats:
        return _ratio(self._change.add(block.dv_l1), self._norm.add(block.v_l1))


class _RelativeNorm:
    def __init__(self) -> None:
        self._before = Delay(1)

    def __call__(self, block: SampleBlock) -> Floats:
        before = self._before.push(block.v_l2)
        return _ratio(np.abs(block.v_l2 - before), before)


class _Staleness:
    def __init__(self, window: int) -> None:
        self._before = Delay(window)

    def __call__(self, block: SampleBlock) -> Floats:
        return _ratio(block.v_l1, self._before.push(block.v_l1))


def _ratio(values: Floats, of: Floats) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        return np.where(of != 0, values / of, np.nan)
