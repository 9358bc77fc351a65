"""STEP: dense Adam until its variance is reliable, then mask learning with it frozen.

Source: Lu et al., ICML 2023, Algorithm 1. The switch point is AutoSwitch's, Algorithm 2
(`autoswitch/autoswitch.py`); the update under a frozen variance is in `optim/adam.py`.
"""

from dataclasses import dataclass, field

from typing_extensions import override

from step_cli.errors import UsageError
from step_cli.optim.recipe import (
    FROZEN_VARIANCE,
    MASK_LEARNING,
    PRECONDITION,
    CheckedRecipe,
    Phase,
    Recipe,
)
from step_cli.recipes.sr_ste import STE


@dataclass(frozen=True)
class Step(CheckedRecipe):
    """Two phases around an inner recipe of mask learning.

    Args:
        inner: Plain STE in the paper; ``SRSTE()`` adds its decay in the second phase.
        learn_variance: Keep updating the variance after the switch, which the paper's
            Figure 8 shows to hurt.
    """

    inner: Recipe = field(default_factory=STE)
    learn_variance: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.inner.after.sparse:
            name = type(self.inner).__name__
            raise UsageError(f"{name} ends dense, so STEP cannot wrap it")

    @property
    @override
    def before(self) -> Phase:
        return PRECONDITION

    @property
    @override
    def after(self) -> Phase:
        return MASK_LEARNING if self.learn_variance else FROZEN_VARIANCE

    @property
    @override
    def inner_recipe(self) -> Recipe:
        return self.inner
