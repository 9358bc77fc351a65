"""Mask decay: pruned weights fade out instead of being cut off (MdGf).

Source: Bambhaniya et al. 2024, arXiv 2402.04744. The gradient passes through unscaled,
as in the authors' code.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor
from typing_extensions import override

from step_cli.optim.recipe import DENSE, MASK_LEARNING, Phase, SparseLayer
from step_cli.recipes.checked import CheckedRecipe
from step_cli.recipes.decaying_mask import StepOrShare, check_lengths, decay_span


@dataclass(frozen=True)
class MaskDecay(CheckedRecipe):
    """Multiply by where(kept, w, beta(t) w), with beta falling from 1.

    Args:
        schedule: beta(t) = max(0, 1 - rate t), or exp(-rate t).
        rate: Of the schedule, per step.
        dense: How long training is dense first: a share of all steps, or steps.
        fine_tune: How long, at the end, beta is 0 whatever the schedule says.
    """

    schedule: Literal["linear", "exponential"] = "linear"
    rate: NonNegativeFloat = 2e-4
    dense: StepOrShare = 0.0
    fine_tune: StepOrShare = 0.1
    needs_total_steps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_lengths(dense=self.dense, fine_tune=self.fine_tune)

    @property
    @override
    def before(self) -> Phase:
        return DENSE

    @property
    @override
    def after(self) -> Phase:
        return MASK_LEARNING

    @property
    @override
    def switch_step(self) -> StepOrShare:
        return self.dense

    @override
    def project(self, layer: SparseLayer) -> Tensor:
        span = decay_span(layer.total_steps, layer.start, self.fine_tune)
        fade = linear_fade if self.schedule == "linear" else exponential_fade
        beta = fade(layer.age, self.rate) if layer.age < span else 0.0
        return torch.where(self.keep(layer), layer.dense, beta * layer.dense)


def linear_fade(age: int, rate: float) -> float:
    """What pruned weights are multiplied by: max(0, 1 - rate * age)."""
    return max(0.0, 1 - rate * age)


def exponential_fade(age: int, rate: float) -> float:
    """What pruned weights are multiplied by: exp(-rate * age), never 0."""
    return math.exp(-rate * age)
