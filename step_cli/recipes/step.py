"""STEP: dense Adam until its variance is reliable, then mask learning with it frozen.

Source: Lu et al., ICML 2023, Algorithm 1. The switch point is AutoSwitch's, Algorithm 2
(`core/autoswitch.py`); the update under a frozen variance is in `core/adam.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor
from typing_extensions import override

from step_cli.core.backward import Backward
from step_cli.core.plan import LayerPlan, Plan
from step_cli.core.recipe import (
    FROZEN_VARIANCE,
    MASK_LEARNING,
    PRECONDITION,
    Layer,
    Phase,
    Recipe,
)
from step_cli.errors import UsageError
from step_cli.recipes.ste import STE


@dataclass(frozen=True)
class Step(Recipe):
    """Two phases around an inner recipe of mask learning.

    Args:
        inner: Plain STE in the paper; ``SRSTE()`` adds its decay in the second phase.
        learn_variance: Keep updating the variance after the switch, which the paper's
            Figure 8 shows to hurt.
    """

    inner: Recipe = field(default_factory=STE)
    learn_variance: bool = False

    def __post_init__(self) -> None:
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
    def needs_total_steps(self) -> bool:
        return self.inner.needs_total_steps

    @override
    def plan_layers(self, weights: Mapping[str, Tensor], plan: Plan) -> Plan:
        return self.inner.plan_layers(weights, plan)

    @override
    def memory(self, dense: Tensor, plan: LayerPlan) -> dict[str, Tensor]:
        return self.inner.memory(dense, plan)

    @override
    def renew(self, layer: Layer) -> None:
        self.inner.renew(layer)

    @override
    def project(self, layer: Layer) -> Tensor:
        return self.inner.project(layer)

    @override
    def gradient(self, grad: Tensor, sparse: Tensor, layer: Layer) -> Tensor:
        return self.inner.gradient(grad, sparse, layer)

    @override
    def backward(self, plan: LayerPlan) -> Backward | None:
        return self.inner.backward(plan)
