"""T-SR-STE: transposable masks, held for many steps, with masked decay.

Source: Hu et al., ICML 2024, arXiv 2404.01847. The mask is N:M along both axes, so that
the product for the input's gradient is sparse too.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveInt
from torch import Tensor
from typing_extensions import override

from step_cli.nm.pattern import NMSpec
from step_cli.optim.backward import Backward
from step_cli.optim.recipe import (
    DENSE,
    MASK_LEARNING,
    CheckedRecipe,
    Phase,
    SparseLayer,
)
from step_cli.recipes.mvue import Sampling, token_sampler
from step_cli.recipes.sr_ste import masked_decay
from step_cli.recipes.transposable import check_blocks, transposable_mask


@dataclass(frozen=True)
class TSRSTE(CheckedRecipe):
    """SR-STE under a transposable mask.

    Args:
        decay: The paper's lambda_w, in gradient per unit of pruned weight.
        refresh_steps: How long a mask is held.
        finish: ``masked`` to the end, or ``dense`` for the last sixth as in the paper.
        mvue: As in S-STE.
    """

    decay: NonNegativeFloat = 6e-5
    refresh_steps: PositiveInt = 40
    finish: Literal["masked", "dense"] = "masked"
    mvue: Sampling = "optimal"

    @property
    @override
    def after(self) -> Phase:
        return DENSE if self.finish == "dense" else MASK_LEARNING

    @property
    @override
    def switch_step(self) -> float | None:
        return 5 / 6 if self.finish == "dense" else None

    @override
    def create_state(self, dense: Tensor, spec: NMSpec) -> dict[str, Tensor]:
        check_blocks(tuple(dense.shape), spec.pattern)
        return {"mask": torch.ones_like(dense, dtype=torch.bool)}

    @override
    def update_state(self, layer: SparseLayer) -> None:
        if layer.starts or layer.age % self.refresh_steps == 0:
            scores, spec = layer.dense.abs(), layer.spec
            mask = transposable_mask(scores, spec.pattern, spec.axis)
            layer.state["mask"].copy_(mask)

    @override
    def keep(self, layer: SparseLayer) -> Tensor:
        return layer.state["mask"]

    @override
    def gradient(self, grad: Tensor, sparse: Tensor, layer: SparseLayer) -> Tensor:
        return masked_decay(grad, sparse, layer.dense, self.decay)

    @override
    def backward(self, spec: NMSpec) -> Backward | None:
        sample = token_sampler(self.mvue, spec.pattern)
        return Backward(sample=sample) if sample else None
