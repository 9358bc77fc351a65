"""What is watched at each step: that all is finite, and what happens to the masks.

Sums stay on the device until they are read, so that nothing waits for it. To look at
all values takes a fifth of an optimizer step, so each step looks at a part for ones
that are not finite, in turn: at all of a small model, of a large one at a 32nd. That is
soon enough, as a loss that is not finite shows in every gradient, and a weight that is
not finite stays so.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from step_cli.errors import NonFiniteError
from step_cli.optim import guards
from step_cli.optim.foreign import foreign
from step_cli.optim.mask import masked
from step_cli.optim.shards import ShardSum, local
from step_cli.optim.weights import SMALL, Weight, flattened
from step_cli.optim.written import Written

AT_LEAST = 1 << 20  # weights looked at in each step
TURNS = 32  # steps after which every weight has been looked at
MEETINGS = 16  # steps after which processes that share weights compare
# What is counted: NaN where something is not finite, values of the model that others
# have changed, and those the base optimizer has.
FINITE, CHANGED, BY_BASE = range(3)
SLOTS = 3


class FiniteWatch:
    """Raises at the step that shows it, or as soon after as the device has counted.

    Args:
        base: The base optimizer.

    Attributes:
        sums: What is counted on the device, and read together.
        written: What others write into the model.
    """

    def __init__(self, base: Optimizer | None = None) -> None:
        self._base, self._next = base, 0
        self.sums = ShardSum(SLOTS)
        self.written = Written()
        self._reading: _Reading | None = None

    def look(self, step: int, weights: Sequence[Weight]) -> None:
        """Look at the next part of all gradients and weights, before a step is taken.

        Args:
            step: The step that is about to be taken.
            weights: All of them, in the same order at each step.

        Raises:
            NonFiniteError: A gradient or a weight is not finite.
            UsageError: Something else has written to the model.
        """
        found: dict[int, tuple[Tensor, list[Tensor]]] = {}
        for w in self._part(weights):
            total = self.sums.beside(w.param)
            _, values = found.setdefault(id(total), (total, []))
            values += [v for v in (_grad(w), w.dense) if v is not None and v.numel()]
        for total, values in found.values():
            if values:  # 0, or NaN for good if there is something that is not finite
                total[FINITE].add_(_sum(values).mul_(0))
        self.written.look(weights, self.sums, CHANGED)
        split = any(w.is_shard for w in weights)
        if self._reading is None and not (split and step % MEETINGS):
            self._reading = _Reading(self.sums.total())
        if self._reading is not None and self._reading.arrived:
            counts, self._reading = self._reading.value.tolist(), None
            if any(counts):  # NaN is true
                self.sums = ShardSum(SLOTS)
                changed = self.written.changed()
                if math.isnan(counts[FINITE]):
                    _explain(step, weights, split=split)
                if counts[BY_BASE]:
                    raise foreign(self._base)
                if counts[CHANGED]:
                    name = changed or "a weight on another process"
                    raise guards.behind_our_back(name)

    def refuse_changes(self, weights: Sequence[Weight]) -> None:
        """Compare the part whose turn it is now, and wait for it.

        Raises:
            UsageError: Something else has written to the model.
        """
        self.written.look(weights, ShardSum(SLOTS), CHANGED)
        name = self.written.changed()
        if name is not None:
            raise guards.behind_our_back(name)

    def _part(self, weights: Sequence[Weight]) -> Iterator[Weight]:
        left = max(AT_LEAST, sum(w.param.numel() for w in weights) // TURNS)
        for _ in weights:
            if left <= 0:
                return
            w = weights[self._next % len(weights)]
            self._next += 1
            left -= w.param.numel()
            yield w


def _sum(values: Iterable[Tensor]) -> Tensor:
    """The sum of everything on one device, small tensors taken together."""
    small: defaultdict[torch.dtype, list[Tensor]] = defaultdict(list)
    sums = []
    for value in values:
        if value.numel() <= SMALL:
            small[value.dtype].append(value)
        else:
            sums.append(_sum_of(value))
    sums += [_sum_of(flattened(some)) for some in small.values()]
    return torch.stack(sums).sum()


def _sum_of(values: Tensor) -> Tensor:
    return values.sum(dtype=torch.promote_types(values.dtype, torch.float32))


def _grad(w: Weight) -> Tensor | None:
    given = w.param.grad
    return None if given is None or given.is_sparse else local(given)


def _explain(step: int, weights: Sequence[Weight], *, split: bool) -> None:
    """Raise what is wrong; nothing if a sum of finite values was just too large."""
    for w in weights:
        if not bool(w.dense.isfinite().all()):
            raise NonFiniteError(
                f"step {step}: {w.name} is not finite, after an earlier gradient or as "
                "it was loaded; go back to a checkpoint before that"
            )
    for w in weights:
        grad = _grad(w)
        if grad is not None and not bool(grad.isfinite().all()):
            raise NonFiniteError(
                f"step {step}: the gradient of {w.name} is not finite; this step has "
                "changed nothing"
            )
    if split:
        raise NonFiniteError(
            f"step {step}: a weight or gradient on another process is not finite"
        )


class _Reading:
    """A number on its way from the device to the host, for which nothing waits."""

    def __init__(self, value: Tensor) -> None:
        self.value = value.to("cpu", non_blocking=True)
        self._event = None
        if value.device.type != "cpu":
            self._event = torch.Event(value.device)
            self._event.record()

    @property
    def arrived(self) -> bool:
        """Whether it is there."""
        return self._event is None or bool(self._event.query())


class MaskWatch:
    """Compares masks and dense weights before and after a step, if that is wanted."""

    def __init__(self) -> None:
        self._place: dict[Weight, int] = {}
        self._before: dict[Weight, tuple[Tensor, Tensor]] = {}  # mask, dense weights
        # Flips of each parameter, then squared gradients and the frozen variance, then
        # the change on pruned weights, and the change.
        self._sums = ShardSum(4)
        self._groups: Sequence[Mapping[str, Any]] = ()
        self._totals: Tensor | None = None
        self._read: list[float] | None = None

    def begin(
        self, watched: Iterable[Weight], groups: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Forget the last step; watch these weights in the coming one.

        Args:
            watched: Which.
            groups: The optimizer's, which their ``group`` counts.
        """
        self._place = {w: place for place, w in enumerate(watched)}
        self._before, self._groups = {}, groups
        self._sums = ShardSum(len(self._place) + 4)
        self._totals = self._read = None

    def before_update(self, weights: Iterable[Weight]) -> None:
        """Remember what the model holds of them, and their dense weights."""
        for w in weights:
            if w in self._place:
                self._before[w] = w.shown != 0, w.dense.clone()
                if w.frozen and w.dense.grad is not None:
                    beta2 = self._groups[w.group]["betas"][1]
                    whole = w.local_state["exp_avg_sq"].sum(dtype=torch.float64)
                    norm = torch.linalg.vector_norm(w.dense.grad, dtype=torch.float64)
                    frozen = whole / (1 - beta2**w.variance_steps)
                    sums = self._sums.beside(w.param)
                    sums[-4:-2].add_(torch.stack([norm.square(), frozen]))

    def after_update(self, weights: Iterable[Weight]) -> None:
        """Compare with what the model and the optimizer hold now."""
        for w in weights:
            if w not in self._before:
                continue
            kept, dense = self._before.pop(w)
            change = (w.dense - dense).abs_()
            flips = kept != (w.shown != 0)
            sums = self._sums.beside(w.param)
            sums[self._place[w]].add_(flips.sum())
            sums[-2:].add_(torch.stack([masked(change, ~kept).sum(), change.sum()]))

    def end(self) -> None:
        """All parameters have been updated."""
        if self._place:
            self._totals = self._sums.total()

    def flip_rates(self) -> dict[Tensor, float] | None:
        """Share of mask entries that changed in each parameter; waits for the device.

        None where nothing was watched.
        """
        sums = self._all()
        if sums is None:
            return None
        found = zip(self._place, sums[:-4], strict=True)
        return {w.param: flips / max(1, w.param.numel()) for w, flips in found}

    def flip_rate(self) -> float | None:
        """Share of all mask entries that changed; waits for the device."""
        sums = self._all()
        if sums is None:
            return None
        return sum(sums[:-4]) / sum(w.param.numel() for w in self._place)

    def pruned_update_share(self) -> float | None:
        """Share of the update, in absolute value, that fell on pruned weights.

        None where nothing moved, or an update was not finite.
        """
        sums = self._all()
        if sums is None:
            return None
        pruned, whole = sums[-2:]
        return pruned / whole if 0 < whole < math.inf else None

    def variance_ratio(self) -> float | None:
        """Mean square of the gradient over the mean of the frozen variance.

        None where none is frozen.
        """
        sums = self._all()
        if sums is None:
            return None
        squares, frozen = sums[-4:-2]
        return squares / frozen if frozen > 0 else None

    def _all(self) -> list[float] | None:
        """All sums, brought to the host at once, whatever was asked for."""
        if self._read is None and self._totals is not None:
            self._read = self._totals.tolist()
        return self._read
