"""What one step did to the masks, measured only when somebody asks.

Sums stay on the device until they are read.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from step_cli.core.mask import masked
from step_cli.core.shards import ShardSum


@dataclass(frozen=True)
class _Before:
    """One parameter before the step: which weights were kept, and the dense ones."""

    kept: Tensor
    dense: Tensor


class MaskWatch:
    """Compares masks and dense weights before and after one step."""

    def __init__(self) -> None:
        self._before: dict[Tensor, _Before] = {}
        self._watched: list[Tensor] = []
        # Flips of each parameter, then the change on pruned weights, and the change.
        self._sums: Tensor | None = None
        self._read: list[float] | None = None

    def forget(self) -> None:
        """Drop the measurement of the last step."""
        self._before, self._watched = {}, []
        self._sums = self._read = None

    def before_update(self, p: Tensor, shown: Tensor, dense: Tensor) -> None:
        """Remember what the model holds of ``p``, and its dense weights."""
        self._before[p] = _Before(shown != 0, dense.clone())

    def after_update(self, now: dict[Tensor, tuple[Tensor, Tensor]]) -> None:
        """Compare with what the model and the optimizer hold now.

        Args:
            now: The parameters of :meth:`before_update`, with the same two tensors.
        """
        layers = len(self._before)
        total = ShardSum(layers + 2)
        for number, (p, before) in enumerate(self._before.items()):
            shown, dense = now[p]
            change = (dense - before.dense).abs_()
            flips = before.kept != (shown != 0)
            pruned = masked(change, ~before.kept)
            sums = total.beside(p)
            sums[number].add_(flips.sum())
            sums[layers:].add_(torch.stack([pruned.sum(), change.sum()]))
        self._watched = list(self._before)
        self._sums = total.total() if self._before else None
        self._before = {}

    def flip_rates(self) -> dict[Tensor, float] | None:
        """Share of mask entries that changed in each parameter; waits for the device.

        None where nothing was watched.
        """
        sums = self._all()
        if sums is None:
            return None
        # The order is that in which `before_update` saw them.
        return {
            p: flips / max(1, p.numel())
            for p, flips in zip(self._watched, sums, strict=False)
        }

    def flip_rate(self) -> float | None:
        """Share of all mask entries that changed; waits for the device."""
        sums = self._all()
        if sums is None:
            return None
        return sum(sums[:-2]) / sum(p.numel() for p in self._watched)

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
        if self._read is None and self._sums is not None:
            self._read = self._sums.tolist()
        return self._read
