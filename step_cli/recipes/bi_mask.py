"""Bi-Mask: SR-STE with a second mask for the backward pass.

Source: Zhang et al., ICML 2023, arXiv 2302.06058. The masks are in
`bi_mask_permutation.py`.
"""

from dataclasses import dataclass
from functools import partial

import torch
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveInt
from torch import Tensor
from typing_extensions import override

from step_cli.nm.pattern import NMSpec
from step_cli.optim.backward import Backward
from step_cli.optim.mask import check_groups
from step_cli.optim.recipe import Layer
from step_cli.recipes.bi_mask_permutation import (
    backward_mask,
    best_permutation,
    output_axis,
)
from step_cli.recipes.checked import CheckedRecipe
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
    def memory(self, dense: Tensor, plan: NMSpec) -> dict[str, Tensor]:
        axis = output_axis(plan)
        check_groups(tuple(dense.shape), plan.pattern, axis)
        return {"permutation": torch.arange(dense.shape[axis], device=dense.device)}

    @override
    def renew(self, layer: Layer) -> None:
        if layer.fresh or layer.age % self.refresh_steps == 0:
            seed, sparse = self.seed + layer.start + layer.age, self.project(layer)
            best = best_permutation(sparse, layer.plan, self.candidates, seed)
            layer.memory["permutation"].copy_(best)

    @override
    def gradient(self, grad: Tensor, sparse: Tensor, layer: Layer) -> Tensor:
        return masked_decay(grad, sparse, layer.dense, self.decay)

    @override
    def backward(self, plan: NMSpec) -> Backward | None:
        mask = partial(backward_mask, plan=plan)
        return None if plan.pattern.dense else Backward(mask=mask)
