"""STE, and SR-STE, which also pulls the pruned weights towards zero.

Source: Zhou et al., ICLR 2021, arXiv 2102.04010. SR-STE's term is added once per
optimizer step, to the gradient the optimizer sees: added inside autograd it would be
counted once for each micro-batch and process, and vanish under fp16 loss scaling.
"""

from dataclasses import dataclass

from pydantic import NonNegativeFloat
from torch import Tensor
from typing_extensions import override

from step_cli.optim.mask import masked
from step_cli.optim.recipe import CheckedRecipe, Recipe, SparseLayer


@dataclass(frozen=True)
class STE(Recipe):
    """Mask learning from the first step, gradients passed straight through."""


@dataclass(frozen=True)
class SRSTE(CheckedRecipe):
    """``decay`` is the paper's lambda_w, in gradient per unit of pruned weight."""

    decay: NonNegativeFloat = 2e-4

    @override
    def gradient(self, grad: Tensor, sparse: Tensor, layer: SparseLayer) -> Tensor:
        return masked_decay(grad, sparse, layer.dense, self.decay)


def masked_decay(grad: Tensor, sparse: Tensor, dense: Tensor, decay: float) -> Tensor:
    """The gradient with ``decay`` times the weights that the last forward pruned."""
    return grad + masked(dense, sparse == 0).mul_(decay)
