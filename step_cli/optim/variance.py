"""How much one optimizer step changed Adam's variance, and whether that is the switch.

Sums are taken on the device and stay there until they are read, all at once.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.optim import Optimizer

from step_cli.autoswitch.autoswitch import Fixed, SwitchRule, VarianceSample
from step_cli.errors import NonFiniteError
from step_cli.optim.compiled import compiled
from step_cli.optim.shards import ShardSum, local
from step_cli.optim.weights import Weight

SUMS = ("v_l1", "v_l2", "dv_l1", "dv_log")  # as `VarianceSample` names them
CHANGE = frozenset({"dv_l1"})  # what AutoSwitch asks for
Take = Callable[[Tensor, Tensor, float, frozenset[str]], Tensor]
CHUNK = 1 << 16  # coordinates summed at a time, so that the work stays in the cache
ROW = 1 << 12  # coordinates that the compiled form sums in fp32


def change_sums(
    grad: Tensor, variance: Tensor, beta2: float, wanted: frozenset[str]
) -> Tensor:
    """What a step is about to do to one parameter's v, from the v before it.

    v_t = v_(t-1) + (1 - beta2) (g^2 - v_(t-1)), so no copy of v is needed.

    Args:
        grad: Like ``variance``.
        variance: v before the update.
        beta2: Adam's.
        wanted: Which of ``SUMS`` are asked for; the others stay 0.

    Returns:
        [5], fp32 or fp64: L1 norm and squared L2 norm of the new v, sum of
        |v_t - v_(t-1)|, sum of its logarithm where it is not 0, and number of those.
    """
    sums = [torch.zeros((), dtype=variance.dtype, device=variance.device)] * 5
    gap = torch.addcmul(variance, grad, grad, value=-1)
    if "v_l1" in wanted or "v_l2" in wanted:
        now = variance + gap * (beta2 - 1)  # never negative
        sums[0], sums[1] = now.sum(), now.square().sum()
    gap.abs_()
    if "dv_l1" in wanted or "dv_log" in wanted:
        sums[2] = gap.sum() * (1 - beta2)
    if "dv_log" in wanted:
        # A coordinate that did not change has logarithm -inf: leave it out, by adding 1
        # where it is 0. In floating point that takes a tenth of a comparison's time.
        change = gap.mul_(1 - beta2)
        same = 1 - change.sign()
        sums[3] = change.add_(same).log_().sum()
        sums[4] = change.numel() - same.sum()
    return torch.stack(sums)


def chunked_sums(
    grad: Tensor, variance: Tensor, beta2: float, wanted: frozenset[str]
) -> Tensor:
    """:func:`change_sums` in pieces that fit the cache, added up in fp64."""
    pieces = zip(
        torch.split(grad.reshape(-1), CHUNK),
        torch.split(variance.reshape(-1), CHUNK),
        strict=True,
    )
    if wanted == CHANGE:
        gaps = [torch.addcmul(v, g, g, value=-1).abs_().sum() for g, v in pieces]
        total = torch.stack(gaps).sum(dtype=torch.float64)
        return _only_change(total).mul_(1 - beta2)
    parts = [change_sums(g, v, beta2, wanted) for g, v in pieces]
    return torch.stack(parts).sum(0, dtype=torch.float64)


def changes_together(
    grads: list[Tensor], variances: list[Tensor], beta2: float
) -> Tensor:
    """The sum of |v_t - v_(t-1)| of small parameters, added up in fp64."""
    gaps = torch._foreach_addcmul(variances, grads, grads, value=-1)
    total = torch.stack(torch._foreach_norm(gaps, 1, dtype=torch.float64)).sum()
    return _only_change(total).mul_(1 - beta2)


def compiled_sums(
    grad: Tensor, variance: Tensor, beta2: float, wanted: frozenset[str]
) -> Tensor:
    """:func:`change_sums` by a compiled kernel, in one pass over the memory."""
    if wanted != CHANGE or grad.numel() % ROW:
        sums: Tensor = compiled(change_sums)(grad, variance, beta2, wanted)
        return sums.double()
    gaps: Tensor = compiled(_gaps)(grad.reshape(-1), variance.reshape(-1))
    return gaps.mul_(1 - beta2)


def _gaps(grad: Tensor, variance: Tensor) -> Tensor:
    """Sum of |g^2 - v|, row by row, as fast as both can be read."""
    rows = (grad * grad - variance).abs().view(-1, ROW).sum(1)
    return _only_change(rows.sum(dtype=torch.float64))


def _only_change(total: Tensor) -> Tensor:
    """A sum in the place it has among those of :func:`change_sums`."""
    return functional.pad(total.view(1), (2, 2))


@dataclass
class VarianceChange:
    """The sums of one step over all coordinates, still on the device.

    Attributes:
        step: Counted from 1.
        d: Number of coordinates, with and without a gradient.
        wanted: Which of ``SUMS`` were asked for.
        sums: Those of :func:`change_sums`, over all parameters and processes.
        by_layer: L1 norm of the new v and sum of its changes of each parameter,
            [2 * parameters]; None where nobody asked.
    """

    step: int
    d: int
    wanted: frozenset[str]
    sums: Tensor
    by_layer: Tensor | None = None

    def read(self) -> VarianceSample:
        """Bring the sums to the host; waits for the device. NaN where none was wanted.

        Raises:
            NonFiniteError: A gradient was NaN or infinite.
        """
        v_l1, v_sq, dv_l1, dv_log, changed = self.sums.tolist()
        if not math.isfinite(v_l1 + dv_l1):
            raise NonFiniteError(f"step {self.step}: the gradient is not finite")
        values = {
            "v_l1": v_l1,
            "v_l2": math.sqrt(v_sq),
            "dv_l1": dv_l1,
            "dv_log": dv_log / changed if changed else None,
        }
        seen = {k: v if k in self.wanted else math.nan for k, v in values.items()}
        return VarianceSample(step=self.step, d=self.d, **seen)

    def read_layers(self) -> list[tuple[float, float]]:
        """Of each parameter, in order: L1 norm of the new v, sum of its changes.

        Empty where nobody asked. Waits for the device.
        """
        if self.by_layer is None:
            return []
        values = self.by_layer.tolist()
        return list(zip(values[::2], values[1::2], strict=True))


class _Sums:
    """Adds up the sums of one step, parameter by parameter."""

    def __init__(
        self,
        weights: Sequence[Weight],
        groups: Sequence[Mapping[str, Any]],
        step: int,
        wanted: frozenset[str],
        *,
        layers: bool,
    ) -> None:
        self._step, self._wanted, self._groups = step, wanted, groups
        learning = [
            w
            for w in weights
            if "exp_avg_sq" in w.local_state and w.param.requires_grad
        ]
        self._place = {w: place for place, w in enumerate(learning)}
        self._total = ShardSum(5)
        self._layers = ShardSum(2 * len(learning)) if layers else None

    def add(self, weights: Sequence[Weight], take: Take) -> None:
        small: defaultdict[Any, list[Weight]] = defaultdict(list)
        wanted_change = self._wanted == CHANGE and self._layers is None
        # Backwards: what is read last is still in the cache when the update begins.
        for w in reversed(weights):
            if w not in self._place:
                continue
            total, grad = self._total.beside(w.param), w.dense.grad
            variance, beta2 = w.local_state["exp_avg_sq"], self._beta2(w)
            if grad is None:  # v stays
                sums = torch.zeros(5, dtype=torch.float64, device=variance.device)
                sums[0], sums[1] = variance.sum(), variance.square().sum()
            elif wanted_change and w.is_small:
                small[id(total), beta2, variance.dtype].append(w)
                continue
            else:
                sums = take(grad.to(variance.dtype), variance, beta2, self._wanted)
            total.add_(sums)
            if self._layers is not None:
                at = 2 * self._place[w]
                self._layers.beside(w.param)[at : at + 2].add_(sums[:3:2])
        for (_, beta2, dtype), some in small.items():
            grads = [w.given_grad.to(dtype) for w in some]
            variances = [w.local_state["exp_avg_sq"] for w in some]
            sums = changes_together(grads, variances, beta2)
            self._total.beside(some[0].param).add_(sums)

    def _beta2(self, w: Weight) -> float:
        return float(self._groups[w.group]["betas"][1])

    def change(self) -> VarianceChange:
        by_layer = None if self._layers is None else self._layers.total()
        count, total = sum(w.param.numel() for w in self._place), self._total.total()
        return VarianceChange(self._step, count, self._wanted, total, by_layer)


class VarianceWatch:
    """Measures what each update does to the variance, and asks the switch rule.

    Args:
        rule: Decides the switch point; None where there is none to decide.
        record: Measure every step in which v is updated, also where no rule asks.
    """

    def __init__(self, rule: SwitchRule | None, *, record: bool) -> None:
        self.rule, self._record = rule, record
        self._pending: list[VarianceChange] = []
        self._now: _Sums | None = None
        self.last: VarianceChange | None = None
        self.compiled = False

    def forget(self) -> None:
        """Drop the measurement of the last step; the rule has its own memory."""
        self.last = self._now = None

    def begin(
        self,
        weights: Sequence[Weight],
        groups: Sequence[Mapping[str, Any]],
        step: int,
        *,
        undecided: bool,
        layers: bool,
    ) -> None:
        """Measure the coming step if anyone asks.

        Args:
            weights: All of them.
            groups: The optimizer's.
            step: The step that is about to be taken.
            undecided: The switch point is still ahead.
            layers: Measure each parameter by itself too.
        """
        if self._record or (undecided and self._rule_needs_sums):
            wanted = frozenset(SUMS)
            if not self._record and self.rule is not None:
                wanted = self.rule.criterion.needs
            self._now = _Sums(weights, groups, step, wanted, layers=layers)

    def before_update(self, weights: Sequence[Weight]) -> None:
        """Take the sums of the update that is about to be done to some weights.

        Args:
            weights: With their gradients in ``dense.grad``.
        """
        if self._now is not None:
            self._now.add(weights, compiled_sums if self.compiled else chunked_sums)

    def end(self) -> None:
        """All parameters have been updated."""
        if self._now is not None:
            self.last, self._now = self._now.change(), None

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
            reason = self.rule.update(change.read())
        self._pending.clear()
        return reason

    @property
    def _rule_needs_sums(self) -> bool:
        return self.rule is not None and not isinstance(self.rule.criterion, Fixed)


def variances(optimizer: Optimizer) -> Iterator[tuple[Tensor, Tensor, dict[str, Any]]]:
    """Each parameter that trains, this process's part of its variance, its group."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            variance = optimizer.state[p].get("exp_avg_sq")
            if variance is not None and p.requires_grad:
                yield p, local(variance), group
