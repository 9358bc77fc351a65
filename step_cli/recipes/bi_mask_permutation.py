"""A second mask for the gradient of a layer's input (Bi-Mask, Zhang et al., ICML 2023).

arXiv 2302.06058. The backward product reduces over outputs, so its mask has its groups
along the output axis: N:M of the weight that is already masked for the forward pass.
Outputs are permuted so that few of the forward's weights fall out.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from step_cli.nm.pattern import NMSpec
from step_cli.optim.mask import magnitude_mask


def output_axis(plan: NMSpec) -> int:
    """The axis of a weight that its outputs run along."""
    return 1 if plan.axis == 0 else 0


def backward_mask(sparse: Tensor, memory: Mapping[str, Tensor], plan: NMSpec) -> Tensor:
    """Mark what the gradient of the input is computed with.

    Args:
        sparse: The weight under its forward mask.
        memory: Its ``permutation`` is an order of the outputs, ``[out]``.
        plan: The forward's pattern and axis.

    Returns:
        Boolean mask, True only where ``sparse`` is not zero; in the permuted order at
        most N of M outputs.
    """
    axis, permutation = output_axis(plan), memory["permutation"]
    moved = sparse.index_select(axis, permutation)
    keep = magnitude_mask(moved, plan.pattern, axis).logical_and_(moved != 0)
    back = torch.argsort(permutation)
    return keep.index_select(axis, back)


def best_permutation(
    sparse: Tensor, plan: NMSpec, candidates: int, seed: int
) -> Tensor:
    """The one of ``candidates`` random orders under which most weights survive.

    As in the authors' code the identity is not among them. The same seed gives the same
    orders, however many are tried.
    """
    outputs = sparse.shape[output_axis(plan)]
    generator = torch.Generator().manual_seed(seed)
    orders = [
        torch.randperm(outputs, generator=generator).to(sparse.device)
        for _ in range(candidates)
    ]
    counts = [
        backward_mask(sparse, {"permutation": order}, plan).count_nonzero()
        for order in orders
    ]
    return orders[int(torch.stack(counts).argmax())]
