"""ASP: prune once, then fine-tune under the frozen mask.

Source: Mishra et al. 2021, arXiv 2104.08378. It starts from trained weights; with a
later switch step it trains densely up to there.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from step_cli.nm.pattern import NMSpec
from step_cli.optim.recipe import DENSE, FINE_TUNE, Phase, Recipe, SparseLayer


@dataclass(frozen=True)
class ASP(Recipe):
    """The mask of largest magnitudes at the switch point, kept to the end."""

    follows_time: ClassVar[bool] = False

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
    def create_state(self, dense: Tensor, spec: NMSpec) -> dict[str, Tensor]:
        return {"mask": torch.ones_like(dense, dtype=torch.bool)}

    @override
    def update_state(self, layer: SparseLayer) -> None:
        if layer.starts:
            layer.state["mask"].copy_(super().keep(layer))

    @override
    def keep(self, layer: SparseLayer) -> Tensor:
        return layer.state["mask"]

    @override
    def gradient(self, grad: Tensor, sparse: Tensor, layer: SparseLayer) -> Tensor:
        return torch.mul(grad, layer.state["mask"])
