"""The plan: which tensor has which pattern along which axis."""

from dataclasses import dataclass

from step_cli.nm.pattern import NMPattern


@dataclass(frozen=True)
class LayerPlan:
    """What one weight promises: its pattern, and the axis its groups run along."""

    pattern: NMPattern
    axis: int


Plan = dict[str, LayerPlan]  # by tensor name
