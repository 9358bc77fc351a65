"""ASP: prune once, then fine-tune under the frozen mask.

Source: Mishra et al. 2021, arXiv 2104.08378. It starts from trained weights; with a
later switch step it trains densely up to there.
"""

from dataclasses import dataclass

from typing_extensions import override

from step_cli.core.recipe import DENSE, FINE_TUNE, Phase, Recipe


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
