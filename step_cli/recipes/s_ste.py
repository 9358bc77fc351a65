"""S-STE: soft thresholding, so that the sparse weights move continuously.

With tau the (M-N)-th smallest magnitude of a group, S(a) = sign(a) max(|a| - tau, 0): a
weight enters and leaves the mask through zero. The final weights are beta S(w): the
kept ones are shrunk, never the dense ones as they are.

Source: Hu et al., NeurIPS 2024, arXiv 2409.09099.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from step_cli.nm.pattern import NMSpec
from step_cli.optim.backward import Backward
from step_cli.optim.mask import keep_mask, to_groups
from step_cli.optim.recipe import CheckedRecipe, SparseLayer
from step_cli.recipes.mvue import Sampling, token_sampler


@dataclass(frozen=True)
class SSTE(CheckedRecipe):
    """Multiply by beta S(w), with beta of the first dense weights for good.

    Args:
        mvue: Sample the gradient that the weight's gradient is computed from:
            ``optimal``, ``approximate`` as in the authors' kernel (2:4 only), ``off``.
        fp8: Round the operands of the three products to FP8.
    """

    mvue: Sampling = "optimal"
    fp8: bool = False
    follows_time: ClassVar[bool] = False

    @override
    def create_state(self, dense: Tensor, spec: NMSpec) -> dict[str, Tensor]:
        return {"scale": dense.new_ones(1)}

    @override
    def update_state(self, layer: SparseLayer) -> None:
        if layer.starts:  # beta is frozen: following w, it would grow without bound
            beta = least_squares_scale(layer.dense, layer.spec, layer.over_processes)
            layer.state["scale"].copy_(beta)

    @override
    def project(self, layer: SparseLayer) -> Tensor:
        return soft_threshold(layer.dense, layer.spec).mul_(layer.state["scale"])

    @override
    def backward(self, spec: NMSpec) -> Backward | None:
        sample = token_sampler(self.mvue, spec.pattern)
        return Backward(sample=sample, fp8=self.fp8) if sample or self.fp8 else None


def soft_threshold(weight: Tensor, spec: NMSpec) -> Tensor:
    """S(w), shape of ``weight``; fewer than N of a group are left where N tie."""
    magnitude = weight.abs()
    kept = keep_mask(magnitude, spec.pattern, spec.axis)
    pruned = to_groups(magnitude.masked_fill(kept, 0), spec.pattern.m, spec.axis)
    tau = pruned.amax(1, keepdim=True).expand_as(pruned).reshape(weight.shape)
    return torch.where(magnitude > tau, weight - tau.copysign(weight), 0)


def least_squares_scale(
    weight: Tensor,
    spec: NMSpec,
    over_processes: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Tensor:
    """The beta that minimises |w - beta S(w)|^2, at least 1; shape ``[1]``.

    It is 1 where S(w) is zero everywhere, as for weights of one magnitude.

    Args:
        weight: The dense weights.
        spec: Their pattern and axis.
        over_processes: Adds up sums where ``weight`` is one process's part.
    """
    soft = soft_threshold(weight, spec).double()
    parts = (weight.double() * soft).sum(), soft.square().sum()
    dot, square = over_processes(torch.stack(parts))
    return torch.where(square > 0, dot / square, 1).to(weight).view(1)
