"""Layers whose backward pass differs from the derivative of their forward pass.

The optimizer changes what a layer multiplies by, but not how it computes gradients. A
recipe that samples, masks or rounds operands there has the layer's ``forward`` replaced
on the instance: names, parameters and ``state_dict()`` stay as they are.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional

from step_cli.errors import UsageError
from step_cli.optim.shards import is_shard

logger = logging.getLogger(__name__)

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class Backward:
    """What differs in the backward pass of y = x w^T + b.

    Attributes:
        sample: From the gradient of y, ``[out, tokens]``, to what the weight's gradient
            is computed from. Linear layers only.
        mask: From the weight and what the recipe keeps of it to a mask for the gradient
            of x.
        fp8: Round the operands of all three products to 8 bits. Linear layers only.
    """

    sample: Callable[[Tensor], Tensor] | None = None
    mask: Callable[[Tensor, dict[str, Tensor]], Tensor] | None = None
    fp8: bool = False

    def rounded(self, operand: Tensor) -> Tensor:
        """An operand of a backward product, rounded if it is to be."""
        return to_fp8(operand, torch.float8_e5m2) if self.fp8 else operand


def to_fp8(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to FP8 and back, scaled so that the largest magnitude is FP8's largest.

    The scale is per tensor, taken just in time, without margin (S-STE, Hu et al. 2024).
    """
    largest = torch.finfo(dtype).max
    amax = values.abs().amax() if values.numel() else values.new_ones(())
    scale = torch.where(amax > 0, largest / amax.float(), 1.0)
    scaled = (values.float() * scale).clamp(-largest, largest)
    return (scaled.to(dtype).float() / scale).to(values.dtype)


class _Linear(torch.autograd.Function):
    """y = x w^T + b with the backward pass of a :class:`Backward`."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # [..., in]
        weight: Tensor,  # [out, in]
        behind: Tensor,  # [out, in], what the gradient of x is computed with
        bias: Tensor | None,
        rule: Backward,
    ) -> Tensor:
        # Only what is needed: an optimizer may write to the rest before the backward.
        for_x, for_weight = ctx.needs_input_grad[:2]
        ctx.save_for_backward(x if for_weight else None, behind if for_x else None)
        ctx.rule, ctx.bias = rule, bias is not None
        if rule.fp8:
            x, weight = (to_fp8(v, torch.float8_e4m3fn) for v in (x, weight))
        return functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        x, behind = ctx.saved_tensors
        rule: Backward = ctx.rule
        columns = grad.reshape(-1, grad.shape[-1]).t()  # [out, tokens]
        bias_grad = columns.sum(1) if ctx.bias else None
        grad_x = grad_weight = None
        if x is not None:
            sampled = columns if rule.sample is None else rule.sample(columns)
            tokens = x.reshape(-1, x.shape[-1])
            grad_weight = rule.rounded(sampled) @ rule.rounded(tokens)
        if behind is not None:
            grad_x = rule.rounded(grad) @ rule.rounded(behind)
        return grad_x, grad_weight, None, bias_grad, None


class _Once(torch.autograd.Function):
    """The identity, whose gradient cannot be differentiated again."""

    @staticmethod
    def forward(ctx: Any, y: Tensor) -> Tensor:
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return grads[0]


@dataclass(eq=False)
class RewiredForward:
    """The ``forward`` of a layer whose backward pass a recipe changes.

    Attributes:
        module: A linear layer, Hugging Face's Conv1D, or a convolution.
        axis: The input axis of its weight.
        rule: What differs.
        active: Whether it does now; else the layer computes as it always did.
        state: What the recipe keeps of its weight.
    """

    module: nn.Module
    axis: int
    rule: Backward
    active: bool = False
    state: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._before = self.module.__dict__.get("forward")
        self.module.forward = self

    def take_off(self) -> None:
        """Give the layer the forward back that it had."""
        self.active = False  # where a wrapper holds it, the layer computes as always
        if self.module.__dict__.get("forward") is not self:
            return
        if self._before is None:
            del self.module.__dict__["forward"]
        else:
            self.module.forward = self._before

    def __reduce__(self) -> tuple[Any, ...]:
        # A model that is saved or copied whole is a plain one: it belongs to no
        # optimizer, and needs nothing of this package.
        if self._before is not None:
            return partial, (self._before,)
        return partial, (type(self.module).forward, self.module)

    def __call__(self, x: Tensor) -> Tensor:
        """Compute the layer."""
        if not self.active:
            plain: Tensor = type(self.module).forward(self.module, x)
            return plain
        weight, bias = self.module.weight, self.module.bias
        assert isinstance(weight, Tensor)
        behind = weight.detach()
        if self.rule.mask is not None:
            behind = torch.where(self.rule.mask(behind, self.state), behind, 0)
        if isinstance(self.module, CONVOLUTIONS):
            return self._convolution(x, weight, behind, bias)
        if self.axis == 0:  # Conv1D stores [in, out]
            weight, behind = weight.t(), behind.t()
        operands = _autocast(x, weight, behind, bias)
        y: Tensor = _Linear.apply(*operands, self.rule)  # type: ignore[no-untyped-call]
        return y

    def _convolution(
        self, x: Tensor, weight: Tensor, behind: Tensor, bias: Any
    ) -> Tensor:
        # Two convolutions of one value: the gradient of the weight flows through the
        # first, that of x through the second, which is subtracted from itself.
        assert isinstance(self.module, CONVOLUTIONS)
        through_weight = self.module._conv_forward(x.detach(), weight, bias)
        through_input = self.module._conv_forward(x, behind, None)
        y: Tensor = through_weight + (through_input - through_input.detach())
        once: Tensor = _Once.apply(y)  # type: ignore[no-untyped-call]
        return once


def rewire(
    model: nn.Module,
    rules: Mapping[Tensor, tuple[int, Backward | None]],
    recipe: str = "the recipe",
) -> dict[RewiredForward, Tensor]:
    """Replace the forward of each layer whose weight has a rule.

    Args:
        model: Its linear layers and, for rules with a mask, its convolutions.
        rules: For each weight its input axis and what differs, if anything does.
        recipe: Its name, for a warning that lists the layers left as they are.

    Returns:
        The new forward of each layer, and its weight, which several may share.

    Raises:
        UsageError: A mask is asked for that spans what FSDP splits.
    """
    changed: dict[RewiredForward, Tensor] = {}
    for module in model.modules():
        p = getattr(module, "weight", None)
        if not isinstance(p, Tensor) or p not in rules:
            continue
        axis, rule = rules[p]
        if rule is None:
            continue
        if rule.mask is not None and is_shard(p):
            raise UsageError(
                "a backward mask spans all rows of a weight, which FSDP splits: use DDP"
            )
        convolution = rule.mask is not None and isinstance(module, CONVOLUTIONS)
        if convolution or isinstance(module, nn.Linear) or is_conv1d(module):
            changed[RewiredForward(module, axis, rule)] = p
    usual = {p for p, (_, rule) in rules.items() if rule} - {*changed.values()}
    names = [name for name, p in model.named_parameters() if p in usual]
    if names:
        logger.warning(
            "%s changes the backward pass of linear layers only; sparse, but with "
            "their usual one: %s",
            recipe,
            ", ".join(names),
        )
    return changed


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is Hugging Face's Conv1D, which stores ``[in, out]``."""
    # By name: importing transformers to ask for its class would take seconds.
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__.startswith("transformers.")


def _autocast(*tensors: Any) -> list[Any]:
    """What autocast would do, which it cannot do inside an autograd function."""
    device = tensors[0].device.type
    if not torch.is_autocast_enabled(device):
        return list(tensors)
    dtype = torch.get_autocast_dtype(device)
    return [None if t is None else t.to(dtype) for t in tensors]
