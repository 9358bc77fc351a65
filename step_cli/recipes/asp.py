"""ASP: prune once, then fine-tune under the frozen mask.

Source: Mishra et al. 2021, arXiv 2104.08378. It starts from trained weights; with a
later switch step it trains densely up to there.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from step_cli.nm.pattern import NMSpec
from step_cli.optim.recipe import DENSE, FINE_TUNE, Layer, Phase, Recipe


@dataclass(frozen=True)
class ASP(Recipe):
    """The mask of largest magnitudes at the switch point, kept to the end."""

    @property
    @override
    def before(self) -> Phase:
        return DENSE

    @property
    @override
    def after(self) -> Phase:
        return FINE_TUNE

    @property
    @override
    def switch_step(self) -> int | None:
        return 0

    @override
    def memory(self, dense: Tensor, plan: NMSpec) -> dict[str, Tensor]:
        return {"mask": torch.ones_like(dense, dtype=torch.bool)}

    @override
    def renew(self, layer: Layer) -> None:
        if layer.fresh:
            layer.memory["mask"].copy_(super().keep(layer))

    @override
    def keep(self, layer: Layer) -> Tensor:
        return layer.memory["mask"]

    @override
    def gradient(self, grad: Tensor, sparse: Tensor, layer: Layer) -> Tensor:
        return torch.mul(grad, layer.memory["mask"])
