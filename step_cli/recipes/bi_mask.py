"""Bi-Mask: SR-STE with a second mask for the gradient of a layer's input.

The backward product reduces over outputs, so its mask has its groups along the output
axis: N:M of the weight that is already masked for the forward pass. Outputs are
permuted so that few of the forward's weights fall out.

Source: Zhang et al., ICML 2023, arXiv 2302.06058.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor
from typing_extensions import override

from step_cli.nm.pattern import NMSpec
from step_cli.optim.backward import Backward
from step_cli.optim.mask import check_groups, magnitude_mask
from step_cli.optim.recipe import CheckedRecipe, SparseLayer
from step_cli.recipes.sr_ste import masked_decay


@dataclass(frozen=True)
class BiMask(CheckedRecipe):
    """N:M along the inputs forward, and along permuted outputs backward.

    Args:
        decay: As in SR-STE.
        candidates: Random orders of the outputs that are tried.
        refresh_steps: How long the best of them is kept.
        seed: Of the orders.
    """

    decay: NonNegativeFloat = 2e-4
    candidates: PositiveInt = 100
    refresh_steps: PositiveInt = 100
    seed: NonNegativeInt = 0

    @override
    def create_state(self, dense: Tensor, spec: NMSpec) -> dict[str, Tensor]:
        axis = output_axis(spec)
        check_groups(tuple(dense.shape), spec.pattern, axis)
        return {"permutation": torch.arange(dense.shape[axis], device=dense.device)}

    @override
    def update_state(self, layer: SparseLayer) -> None:
        if layer.starts or layer.age % self.refresh_steps == 0:
            seed, sparse = self.seed + layer.start + layer.age, self.project(layer)
            best = best_permutation(sparse, layer.spec, self.candidates, seed)
            layer.state["permutation"].copy_(best)

    @override
    def gradient(self, grad: Tensor, sparse: Tensor, layer: SparseLayer) -> Tensor:
        return masked_decay(grad, sparse, layer.dense, self.decay)

    @override
    def backward(self, spec: NMSpec) -> Backward | None:
        mask = partial(backward_mask, spec=spec)
        return None if spec.pattern.dense else Backward(mask=mask)


def output_axis(spec: NMSpec) -> int:
    """The axis of a weight that its outputs run along."""
    return 1 if spec.axis == 0 else 0


def backward_mask(sparse: Tensor, state: Mapping[str, Tensor], spec: NMSpec) -> Tensor:
    """Mark what the gradient of the input is computed with.

    Args:
        sparse: The weight under its forward mask.
        state: Its ``permutation`` is an order of the outputs, ``[out]``.
        spec: The forward's pattern and axis.

    Returns:
        Boolean mask, True only where ``sparse`` is not zero; in the permuted order at
        most N of M outputs.
    """
    axis, permutation = output_axis(spec), state["permutation"]
    moved = sparse.index_select(axis, permutation)
    keep = magnitude_mask(moved, spec.pattern, axis).logical_and_(moved != 0)
    back = torch.argsort(permutation)
    return keep.index_select(axis, back)


def best_permutation(
    sparse: Tensor, spec: NMSpec, candidates: int, seed: int
) -> Tensor:
    """The one of ``candidates`` random orders under which most weights survive.

    As in the authors' code the identity is not among them. The same seed gives the same
    orders, however many are tried.
    """
    outputs = sparse.shape[output_axis(spec)]
    generator = torch.Generator().manual_seed(seed)
    orders = [
        torch.randperm(outputs, generator=generator).to(sparse.device)
        for _ in range(candidates)
    ]
    counts = [
        backward_mask(sparse, {"permutation": order}, spec).count_nonzero()
        for order in orders
    ]
    return orders[int(torch.stack(counts).argmax())]
