"""Another view of the weights in the model, for a while: dense or pruned."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from step_cli.optim.weights import Weight


class OtherView:
    """What the model holds for the length of a ``with`` block.

    Args:
        weights: All of them.
        shows: What the model is to hold of a sparse one.
        writes: The block may write to the model.
        computed: What is shown is no mere copy, and dear to compute again.
    """

    def __init__(
        self,
        weights: Sequence[Weight],
        shows: Callable[[Weight], Tensor],
        *,
        writes: bool = False,
        computed: bool = False,
    ) -> None:
        self._shows, self._computed = shows, computed
        sparse = [w for w in weights if w.spec is not None]
        # Dense weights that lie in the model are shown already, and written to there.
        self._own = {w: w.shown.clone() for w in sparse if w.apart or not writes}
        for w in self._own:
            w.shown.copy_(shows(w))
        self._given = [w for w in weights if w.apart]
        self._versions = {w: w.present_version for w in self._own}

    def changed(self) -> str | None:
        """The name of a weight that the block has written to."""
        for w, own in self._own.items():
            counted = w.present_version != self._versions[w]
            # Computing what is shown of a shard may need all processes.
            if self._computed and (w.is_shard or not counted):
                continue
            given = self._shows(w if w.apart else replace(w, dense=own))
            if not torch.equal(w.shown, given.to(w.shown.dtype)):
                return w.name
        return None

    def take(self) -> str | None:
        """Make what was written the dense weights; the name of one that was."""
        name = None
        for w in self._given:
            before = w.dense.to(w.shown.dtype)
            if not torch.equal(w.shown, before):
                # Bits that the model's dtype has no room for stay where nothing came.
                w.dense.copy_(torch.where(w.shown == before, w.dense, w.shown))
                name = name or w.name
        return name

    def end(self) -> None:
        """Let the model hold its own view again."""
        for w, values in self._own.items():
            w.shown.copy_(values)
            w.version = w.present_version
