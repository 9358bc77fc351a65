"""Decaying Mask: the pattern itself becomes sparser in stages.

Sources: Kao et al. 2022, arXiv 2209.07617; Bambhaniya et al. 2024, arXiv 2402.04744,
which calls it SdGf. The stages are in `recipes/decay.py`.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor
from typing_extensions import override

from step_cli.optim.mask import magnitude_mask
from step_cli.optim.recipe import DENSE, MASK_LEARNING, Phase, SparseLayer
from step_cli.recipes import decay
from step_cli.recipes.checked import CheckedRecipe
from step_cli.recipes.decay import StepOrShare


@dataclass(frozen=True)
class DecayingMask(CheckedRecipe):
    """Dense, then N falling from M - 1, then the final pattern; plain STE throughout.

    Args:
        dense: How long training is dense first: a share of all steps, or steps.
        fine_tune: How long, at the end, the final pattern is sure to hold.
        structure: ``stepwise`` halves N; ``geometric`` N and M, from 8N:8M.
    """

    dense: StepOrShare = 0.1
    fine_tune: StepOrShare = 0.1
    structure: Literal["stepwise", "geometric"] = "stepwise"
    needs_total_steps: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        decay.check_lengths(dense=self.dense, fine_tune=self.fine_tune)

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
    def keep(self, layer: SparseLayer) -> Tensor:
        pattern, axis = layer.spec.pattern, layer.spec.axis
        stages = decay.stepwise_stages(pattern)
        if self.structure == "geometric":
            stages = decay.geometric_stages(pattern, layer.dense.shape[axis])
        span = decay.decay_span(layer.total_steps, layer.start, self.fine_tune)
        stage = decay.stage_at(stages, layer.age, span)
        return magnitude_mask(layer.dense, stage, axis)
