"""S-STE: soft thresholding, so that the sparse weights move continuously.

Source: Hu et al., NeurIPS 2024, arXiv 2409.09099. The final weights are beta S(w): the
kept ones are shrunk, never the dense ones as they are.
"""

from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from step_cli.nm.pattern import NMSpec
from step_cli.optim.backward import Backward
from step_cli.optim.recipe import Layer
from step_cli.recipes.checked import CheckedRecipe
from step_cli.recipes.mvue import Sampling, token_sampler
from step_cli.recipes.soft_threshold import least_squares_scale, soft_threshold


@dataclass(frozen=True)
class SSTE(CheckedRecipe):
    """Multiply by beta S(w), with beta of the first dense weights for good.

    Args:
        mvue: Sample the gradient that the weight's gradient is computed from:
            ``optimal``, ``approximate`` as in the authors' kernel (2:4 only), ``off``.
        fp8: Round the operands of the three products to FP8.
    """

    mvue: Sampling = "optimal"
    fp8: bool = False

    @override
    def memory(self, dense: Tensor, plan: NMSpec) -> dict[str, Tensor]:
        return {"scale": dense.new_ones(1)}

    @override
    def renew(self, layer: Layer) -> None:
        if layer.fresh:  # beta is frozen: following w, it would grow without bound
            beta = least_squares_scale(layer.dense, layer.plan, layer.over_processes)
            layer.memory["scale"].copy_(beta)

    @override
    def project(self, layer: Layer) -> Tensor:
        return soft_threshold(layer.dense, layer.plan).mul_(layer.memory["scale"])

    @override
    def backward(self, plan: NMSpec) -> Backward | None:
        sample = token_sampler(self.mvue, plan.pattern)
        return Backward(sample=sample, fp8=self.fp8) if sample or self.fp8 else None
