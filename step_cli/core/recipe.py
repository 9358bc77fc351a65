"""What a recipe is: the answers to a few questions, STE being the plain ones."""

from dataclasses import dataclass

import torch
from torch import Tensor

from step_cli.core.plan import LayerPlan


@dataclass(frozen=True)
class Phase:
    """The rules that hold for a stretch of training.

    Attributes:
        name: As ``optimizer.phase`` says it.
        sparse: The model holds the projected weights, not the dense ones.
        refresh_mask: The mask follows the dense weights; else it stays as it was, and
            pruned weights receive no gradient.
        learn_variance: Adam's variance is updated; else it is frozen.
    """

    name: str
    sparse: bool = True
    refresh_mask: bool = True
    learn_variance: bool = True


DENSE = Phase("dense", sparse=False)
PRECONDITION = Phase("precondition", sparse=False)
MASK_LEARNING = Phase("mask-learning")
FROZEN_VARIANCE = Phase("mask-learning", learn_variance=False)
FINE_TUNE = Phase("fine-tune", refresh_mask=False)


class Recipe:
    """Plain STE; a subclass overrides only the answers in which it differs."""

    @property
    def before(self) -> Phase:
        """1. Which rules hold up to the switch point?"""
        return MASK_LEARNING

    @property
    def after(self) -> Phase:
        """2. Which rules hold after it?"""
        return self.before

    def project(self, dense: Tensor, keep: Tensor, plan: LayerPlan, age: int) -> Tensor:
        """3. What does the layer multiply by, ``age`` steps into the phase?

        Args:
            dense: The weights the optimizer owns, fp32.
            keep: The mask, True where a weight is kept.
            plan: The layer's pattern and group axis.
            age: Steps since the sparse phase began, from 0.
        """
        return torch.where(keep, dense, 0)

    def extra_grad(self, dense: Tensor, kept: Tensor) -> Tensor | None:
        """4. What is added to the gradient, once per optimizer step?

        Args:
            dense: The weights the optimizer owns.
            kept: The mask of the last forward pass.
        """
        return None

    @property
    def switch_step(self) -> int | None:
        """5. At which step do the rules change? None: a criterion decides."""
        return None

    @property
    def switches(self) -> bool:
        """Whether the rules change, so that a switch point is needed."""
        return self.before != self.after
