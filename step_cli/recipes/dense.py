"""Dense training: what the other recipes are measured against."""

from dataclasses import dataclass

from typing_extensions import override

from step_cli.optim.recipe import DENSE, Phase, Recipe


@dataclass(frozen=True)
class Dense(Recipe):
    """No mask at any time."""

    @property
    @override
    def before(self) -> Phase:
        return DENSE
