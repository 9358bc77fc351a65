"""What one step did to the masks, measured only when somebody asks.

Sums stay on the device until they are read.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

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
        self._d = 0
        self._sums: Tensor | None = None  # flips, change on pruned, change

    def forget(self) -> None:
        """Drop the measurement of the last step."""
        self._before, self._sums = {}, None

    def before_update(self, p: Tensor, shown: Tensor, dense: Tensor) -> None:
        """Remember what the model holds of ``p``, and its dense weights."""
        self._before[p] = _Before(shown != 0, dense.clone())

    def after_update(self, now: dict[Tensor, tuple[Tensor, Tensor]]) -> None:
        """Compare with what the model and the optimizer hold now.

        Args:
            now: The parameters of :meth:`before_update`, with the same two tensors.
        """
        sums = ShardSum(3)
        for p, before in self._before.items():
            shown, dense = now[p]
            change = (dense - before.dense).abs_()
            flips = before.kept != (shown != 0)
            pruned = torch.where(before.kept, 0, change)
            sums.beside(p).add_(torch.stack([flips.sum(), pruned.sum(), change.sum()]))
        self._d = sum(p.numel() for p in self._before)
        self._sums = sums.total() if self._before else None
        self._before = {}

    def flip_rate(self) -> float | None:
        """Share of mask entries that changed; waits for the device."""
        return None if self._sums is None else float(self._sums[0]) / self._d

    def pruned_update_share(self) -> float | None:
        """Share of the update, in absolute value, that fell on pruned weights.

        None where nothing moved, or an update was not finite.
        """
        if self._sums is None:
            return None
        _, pruned, whole = self._sums.tolist()
        return pruned / whole if 0 < whole < math.inf else None
