"""Looks for gradients and weights that are not finite, without waiting for the device.

To look at all of them takes a fifth of an optimizer step, so each step looks at a part,
in turn: at all of a small model, of a large one at a 32nd. That is soon enough, as a
loss that is not finite shows in every gradient, and a weight that is not stays so.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from step_cli.errors import NonFiniteError
from step_cli.optim.shards import ShardSum, is_shard, local

AT_LEAST = 1 << 20  # weights looked at in each step
TURNS = 32  # steps after which every weight has been looked at
MEETINGS = 16  # steps after which processes that share weights compare

Groups = Sequence[dict[str, Any]]
DenseOf = Callable[[Tensor], Tensor]


@contextmanager
def said_if_it_overflows(step: int) -> Iterator[None]:
    """Name the step whose update has a factor that the weights' dtype cannot hold.

    Raises:
        NonFiniteError: In place of the RuntimeError by which torch says so.
    """
    try:
        yield
    except RuntimeError as error:
        if "without overflow" not in str(error):
            raise
        raise NonFiniteError(
            f"step {step}: the update is beyond all bounds; lower the learning rate"
        ) from None


class FiniteWatch:
    """Raises at the step that shows it, or as soon after as the device has counted."""

    def __init__(self) -> None:
        self._next = 0
        self._sums = ShardSum(1)
        self._reading: _Reading | None = None

    def look(self, step: int, groups: Groups, dense_of: DenseOf) -> None:
        """Look at the next part of all parameters, before a step is taken.

        Args:
            step: The step that is about to be taken.
            groups: The optimizer's, with gradients.
            dense_of: This process's dense weights of a parameter.

        Raises:
            NonFiniteError: A gradient or a weight is not finite.
        """
        everything = [p for group in groups for p in group["params"]]
        found: dict[int, tuple[Tensor, list[Tensor]]] = {}
        for p in self._part(everything):
            total = self._sums.beside(p)
            _, sums = found.setdefault(id(total), (total, []))
            for values in (_grad(p), dense_of(p)):
                if values is not None and values.numel():
                    dtype = torch.promote_types(values.dtype, torch.float32)
                    sums.append(values.sum(dtype=dtype))
        for total, sums in found.values():
            if sums:  # 0, or NaN for good if there is something that is not finite
                total.add_(torch.stack(sums).sum().mul_(0))
        split = any(map(is_shard, everything))
        if self._reading is None and not (split and step % MEETINGS):
            self._reading = _Reading(self._sums.total())
        if self._reading is not None and self._reading.arrived:
            bad, self._reading = math.isnan(float(self._reading.value)), None
            if bad:
                self._sums = ShardSum(1)
                _explain(step, groups, dense_of, split=split)

    def _part(self, everything: Sequence[Tensor]) -> Iterator[Tensor]:
        left = max(AT_LEAST, sum(p.numel() for p in everything) // TURNS)
        for _ in everything:
            if left <= 0:
                return
            p = everything[self._next % len(everything)]
            self._next += 1
            left -= p.numel()
            yield p


def _grad(p: Tensor) -> Tensor | None:
    given = p.grad
    return None if given is None or given.is_sparse else local(given)


def _explain(step: int, groups: Groups, dense_of: DenseOf, *, split: bool) -> None:
    """Raise what is wrong; nothing if a sum of finite values was just too large."""
    named = [
        (name, p)
        for group in groups
        for name, p in zip(
            group.get("param_names") or ["a parameter"] * len(group["params"]),
            group["params"],
            strict=True,
        )
    ]
    for name, p in named:
        if not bool(dense_of(p).isfinite().all()):
            raise NonFiniteError(
                f"step {step}: {name} is not finite, after an earlier gradient or as "
                "it was loaded; go back to a checkpoint before that"
            )
    for name, p in named:
        grad = _grad(p)
        if grad is not None and not bool(grad.isfinite().all()):
            raise NonFiniteError(
                f"step {step}: the gradient of {name} is not finite; this step has "
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
