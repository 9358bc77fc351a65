"""How much one optimizer step changed Adam's variance, and whether that is the switch.

Sums are taken on the device and stay there until they are read, all at once.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from step_cli.core.autoswitch import Fixed, SwitchRule, VarianceSample
from step_cli.core.shards import ShardSum, local
from step_cli.errors import NonFiniteError

SUMS = ("v_l1", "v_l2 squared", "dv_l1", "dv_log", "changed")


@dataclass
class VarianceChange:
    """The sums of one step over all coordinates, still on the device.

    Attributes:
        step: Counted from 1.
        d: Number of coordinates, with and without a gradient.
        parts: This process's sums, one for each of ``SUMS``.
        sums: Those over all processes, once they are known.
    """

    step: int
    d: int
    parts: ShardSum = field(default_factory=lambda: ShardSum(len(SUMS)))
    sums: Tensor | None = None

    def add_change(
        self, p: Tensor, grad: Tensor, variance: Tensor, beta2: float
    ) -> None:
        """Add one parameter's |v_t - v_(t-1)|, from the v before its update.

        v_t - v_(t-1) = (1 - beta2) (g^2 - v_(t-1)), so no copy of v is needed.
        """
        sums = self.parts.beside(p)
        change = torch.addcmul(-variance, grad, grad).abs_().mul_(1 - beta2)
        sums[2] += change.sum()
        # A coordinate that did not change has logarithm -inf: leave it out.
        changed = change > 0
        sums[3] += torch.where(changed, change, 1.0).log_().sum()
        sums[4] += changed.sum()

    def add_norms(self, p: Tensor, variance: Tensor) -> None:
        """Add one parameter's norms of v, after its update."""
        sums = self.parts.beside(p)
        sums[0] += variance.sum()  # v is never negative
        sums[1] += torch.linalg.vector_norm(variance).square()

    def read(self) -> VarianceSample:
        """Bring the sums to the host; waits for the device.

        Raises:
            NonFiniteError: A gradient was NaN or infinite.
        """
        assert self.sums is not None
        v_l1, v_sq, dv_l1, dv_log, changed = self.sums.tolist()
        if not math.isfinite(v_l1):
            raise NonFiniteError(f"step {self.step}: the gradient is not finite")
        return VarianceSample(
            step=self.step,
            d=self.d,
            v_l1=v_l1,
            v_l2=math.sqrt(v_sq),
            dv_l1=dv_l1,
            dv_log=dv_log / changed if changed else None,
        )


class VarianceWatch:
    """Measures the variance around each update, and asks the switch rule.

    Args:
        rule: Decides the switch point; None where there is none to decide.
        record: Measure every step in which v is updated, also where no rule asks.
    """

    def __init__(self, rule: SwitchRule | None, *, record: bool) -> None:
        self.rule, self._record = rule, record
        self._pending: list[VarianceChange] = []
        self.last: VarianceChange | None = None

    def forget(self) -> None:
        """Drop the measurement of the last step; the rule has its own memory."""
        self.last = None

    def before_update(
        self,
        optimizer: Optimizer,
        stand_ins: Mapping[Tensor, Tensor],
        step: int,
        *,
        undecided: bool,
    ) -> None:
        """Take the sums that need the v before the update, if anyone asks for them.

        Args:
            optimizer: Holds the variances.
            stand_ins: For each parameter the tensor that carries its gradient.
            step: The step that is about to be taken.
            undecided: The switch point is still ahead.
        """
        if not (self._record or (undecided and self._rule_needs_sums)):
            return
        self.last = VarianceChange(step, sum(p.numel() for p in stand_ins))
        for p, variance, group in variances(optimizer):
            grad = stand_ins[p].grad
            if grad is not None:
                grad = grad.to(variance.dtype)
                self.last.add_change(p, grad, variance, group["betas"][1])

    def after_update(self, optimizer: Optimizer) -> None:
        """Take the sums that need the v after the update."""
        if self.last is not None:
            for p, variance, _ in variances(optimizer):
                self.last.add_norms(p, variance)
            self.last.sums = self.last.parts.total()

    def reason_at(self, step: int) -> str | None:
        """Why ``step`` is the switch point, or None; reads nothing before it can be."""
        assert self.rule is not None
        if not self._rule_needs_sums:
            return "fixed" if step >= self.rule.first_step else None
        assert self.last is not None
        self._pending.append(self.last)
        return None if step < self.rule.first_step else self.flush()

    def restart(self) -> None:
        """Drop what the rule has not read yet, as another state is being loaded."""
        self.last = None
        self._pending.clear()

    def flush(self) -> str | None:
        """Hand the rule what has not been read yet; return its last answer."""
        reason = None
        for change in self._pending:
            assert self.rule is not None
            reason = self.rule.observe(change.read())
        self._pending.clear()
        return reason

    @property
    def _rule_needs_sums(self) -> bool:
        return self.rule is not None and not isinstance(self.rule.criterion, Fixed)


def variances(optimizer: Optimizer) -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
    """Each parameter that has a variance, this process's part of it, its group."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            variance = optimizer.state[p].get("exp_avg_sq")
            if variance is not None:
                yield p, local(variance), group
