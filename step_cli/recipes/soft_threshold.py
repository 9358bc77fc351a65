"""Soft thresholding to N:M, continuous in the weights (S-STE, Hu et al., NeurIPS 2024).

arXiv 2409.09099. With tau the (M-N)-th smallest magnitude of a group,
S(a) = sign(a) max(|a| - tau, 0): a weight enters and leaves the mask through zero.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from step_cli.nm.pattern import NMSpec
from step_cli.optim.mask import keep_mask, to_groups


def soft_threshold(weight: Tensor, plan: NMSpec) -> Tensor:
    """S(w), shape of ``weight``; fewer than N of a group are left where N tie."""
    magnitude = weight.abs()
    kept = keep_mask(magnitude, plan.pattern, plan.axis)
    pruned = to_groups(magnitude.masked_fill(kept, 0), plan.pattern.m, plan.axis)
    tau = pruned.amax(1, keepdim=True).expand_as(pruned).reshape(weight.shape)
    return torch.where(magnitude > tau, weight - tau.copysign(weight), 0)


def least_squares_scale(
    weight: Tensor,
    plan: NMSpec,
    over_processes: Callable[[Tensor], Tensor] = lambda sums: sums,
) -> Tensor:
    """The beta that minimises |w - beta S(w)|^2, at least 1; shape ``[1]``.

    It is 1 where S(w) is zero everywhere, as for weights of one magnitude.

    Args:
        weight: The dense weights.
        plan: Their pattern and axis.
        over_processes: Adds up sums where ``weight`` is one process's part.
    """
    soft = soft_threshold(weight, plan).double()
    parts = (weight.double() * soft).sum(), soft.square().sum()
    dot, square = over_processes(torch.stack(parts))
    return torch.where(square > 0, dot / square, 1).to(weight).view(1)
