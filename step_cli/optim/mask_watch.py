"""What one step did to the masks, measured only when somebody asks.

Sums stay on the device until they are read.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from step_cli.optim.mask import masked
from step_cli.optim.shards import ShardSum


@dataclass(frozen=True)
class _Before:
    """One parameter before the step: which weights were kept, and the dense ones."""

    kept: Tensor
    dense: Tensor


class MaskWatch:
    """Compares masks and dense weights before and after one step."""

    def __init__(self) -> None:
        self._place: dict[Tensor, int] = {}
        self._before: dict[Tensor, _Before] = {}
        # Flips of each parameter, then the change on pruned weights, and the change.
        self._sums: ShardSum | None = None
        self._totals: Tensor | None = None
        self._read: list[float] | None = None

    def begin(self, watched: Iterable[Tensor]) -> None:
        """Forget the last step; watch these parameters in the coming one."""
        self._place = {p: place for place, p in enumerate(watched)}
        self._before = {}
        self._sums = ShardSum(len(self._place) + 2) if self._place else None
        self._totals = self._read = None

    def before_update(self, p: Tensor, shown: Tensor, dense: Tensor) -> None:
        """Remember what the model holds of ``p``, and its dense weights."""
        if p in self._place:
            self._before[p] = _Before(shown != 0, dense.clone())

    def after_update(self, p: Tensor, shown: Tensor, dense: Tensor) -> None:
        """Compare with what the model and the optimizer hold now."""
        before = self._before.pop(p, None)
        if before is None or self._sums is None:
            return
        change = (dense - before.dense).abs_()
        flips = before.kept != (shown != 0)
        pruned = masked(change, ~before.kept)
        sums = self._sums.beside(p)
        sums[self._place[p]].add_(flips.sum())
        sums[-2:].add_(torch.stack([pruned.sum(), change.sum()]))

    def end(self) -> None:
        """All parameters have been updated."""
        if self._sums is not None:
            self._totals, self._sums = self._sums.total(), None

    def flip_rates(self) -> dict[Tensor, float] | None:
        """Share of mask entries that changed in each parameter; waits for the device.

        None where nothing was watched.
        """
        sums = self._all()
        if sums is None:
            return None
        return {p: sums[at] / max(1, p.numel()) for p, at in self._place.items()}

    def flip_rate(self) -> float | None:
        """Share of all mask entries that changed; waits for the device."""
        sums = self._all()
        if sums is None:
            return None
        return sum(sums[:-2]) / sum(p.numel() for p in self._place)

    def pruned_update_share(self) -> float | None:
        """Share of the update, in absolute value, that fell on pruned weights.

        None where nothing moved, or an update was not finite.
        """
        sums = self._all()
        if sums is None:
            return None
        pruned, whole = sums[-2:]
        return pruned / whole if 0 < whole < math.inf else None

    def _all(self) -> list[float] | None:
        """All sums, brought to the host at once, whatever was asked for."""
        if self._read is None and self._totals is not None:
            self._read = self._totals.tolist()
        return self._read
