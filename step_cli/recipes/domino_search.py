"""DominoSearch: each layer its own N, then SR-STE.

Source: Sun et al., NeurIPS 2021. What is searched, and how, is in
`domino_allocation.py` and `domino_training.py`; ``STEP`` around this recipe trains the
patterns found by STEP.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor
from typing_extensions import override

from step_cli.errors import UsageError
from step_cli.nm.pattern import Plan
from step_cli.optim.recipe import Layer
from step_cli.recipes.checked import CheckedRecipe
from step_cli.recipes.domino_allocation import allocate
from step_cli.recipes.sr_ste import masked_decay


@dataclass(frozen=True)
class DominoSearch(CheckedRecipe):
    """SR-STE with N from a search, or from the weights where there is no data.

    Args:
        decay: As in SR-STE.
        density: Share of all selected weights to keep; default that of the plan.
        search_steps: Longest search on training data, which `train` makes (the paper:
            30 000); 0, and where there is no data: N is chosen from the weights alone.
        search_lr: Of the search's SGD; N falls faster where it is higher.
    """

    decay: NonNegativeFloat = 5e-4
    density: float | None = None
    search_steps: NonNegativeInt = 0
    search_lr: PositiveFloat = 0.01

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.density is not None and not 0 < self.density <= 1:
            raise UsageError(f"density {self.density}: give a share such as 0.25")

    @override
    def plan_layers(self, weights: Mapping[str, Tensor], plan: Plan) -> Plan:
        return allocate(weights, plan, self.target(weights, plan))

    def target(self, weights: Mapping[str, Tensor], plan: Plan) -> float:
        """Share of the weights of ``plan`` that is to be kept."""
        if self.density is not None:
            return self.density
        count = {name: weights[name].numel() for name in plan}
        kept = sum(count[name] * layer.pattern.density for name, layer in plan.items())
        return kept / sum(count.values())

    @override
    def gradient(self, grad: Tensor, sparse: Tensor, layer: Layer) -> Tensor:
        return masked_decay(grad, sparse, layer.dense, self.decay)
