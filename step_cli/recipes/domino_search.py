"""DominoSearch: each layer its own N, then SR-STE.

All layers keep their M. A layer's N falls by votes of its groups, faster where a layer
is denser than its ERK share and where it costs more operations: `domino_training.py`
is that search on training data. :func:`allocate` chooses N from the weights alone.
``STEP`` around this recipe trains the patterns found by STEP.

Source: Sun et al., NeurIPS 2021.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat
from torch import Tensor
from typing_extensions import override

from step_cli.errors import UsageError
from step_cli.nm import allocation
from step_cli.nm.pattern import NMPattern, NMSpec, Plan
from step_cli.optim.mask import magnitude_mask, masked, to_groups
from step_cli.optim.recipe import CheckedRecipe, SparseLayer
from step_cli.recipes.sr_ste import masked_decay

VOTES_NEEDED = 0.75  # share of groups
NEAR_SHARE = 0.01  # a layer this near its ERK share is not pulled
TOLERANCE = 0.001  # of the sparsity that ends the search


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
    def gradient(self, grad: Tensor, sparse: Tensor, layer: SparseLayer) -> Tensor:
        return masked_decay(grad, sparse, layer.dense, self.decay)


def allocate(weights: Mapping[str, Tensor], plan: Plan, density: float) -> Plan:
    """:func:`allocation.allocate` for tensors.

    Args:
        weights: By name, at least those of ``plan``.
        plan: The layers; their M stays.
        density: Share of all weights to keep.
    """
    energies = {name: _energies(weights[name], layer) for name, layer in plan.items()}
    shapes = {name: tuple(weights[name].shape) for name in plan}
    return allocation.allocate(energies, shapes, plan, density)


def _energies(weight: Tensor, layer: NMSpec) -> dict[int, float]:
    """Sum of squares that each allowed N keeps."""
    dense = weight.detach().float()
    found = {}
    for n in allocation.allowed(layer.pattern.m):
        keep = magnitude_mask(dense, NMPattern(n, layer.pattern.m), layer.axis)
        found[n] = float(masked(dense, keep).double().square().sum())
    return found


def thresholds(weight: Tensor, spec: NMSpec) -> Tensor:
    """T_g: mean of the smaller half of each group's magnitudes, ``[X, 1, B]``."""
    groups = to_groups(weight.abs(), spec.pattern.m, spec.axis)
    return groups.sort(dim=1).values[:, : spec.pattern.m // 2].mean(1, keepdim=True)


def vote(weight: Tensor, limits: Tensor, n: int, spec: NMSpec) -> float:
    """Share of groups of which fewer than ``n`` magnitudes exceed the group's limit."""
    groups = to_groups(weight.abs(), spec.pattern.m, spec.axis)
    return float((groups > limits).sum(1).lt(n).float().mean())


def factors(
    densities: Mapping[str, float],
    erk: Mapping[str, float],
    operations: Mapping[str, float],
) -> dict[str, float]:
    """phi: how strongly each layer's survivors are shrunk.

    Half by its distance from the ERK share, half by its operations, each scaled by the
    largest. It is negative for a layer that is sparser than its share: that one grows.

    Args:
        densities: N / M of each layer.
        erk: :func:`erk_sparsities` of the target.
        operations: Of each layer when dense, in any unit.
    """
    excess = {name: erk[name] - (1 - density) for name, density in densities.items()}
    cost = {name: operations[name] * density for name, density in densities.items()}
    largest = max(abs(value) for value in excess.values())
    if all(value < NEAR_SHARE for value in excess.values()):
        excess, largest = dict.fromkeys(excess, 0.0), 1.0
    dearest = max(cost.values()) or 1.0
    return {n: 0.5 * excess[n] / largest + 0.5 * cost[n] / dearest for n in densities}


def overall_sparsity(
    patterns: Mapping[str, NMPattern], counts: Mapping[str, int]
) -> float:
    """Share of all weights that are pruned."""
    kept = sum(counts[name] * pattern.density for name, pattern in patterns.items())
    return 1 - kept / sum(counts[name] for name in patterns)


def reached(
    patterns: Mapping[str, NMPattern], counts: Mapping[str, int], sparsity: float
) -> bool:
    """The stop rule: overall sparsity is within the tolerance of the target."""
    return overall_sparsity(patterns, counts) >= sparsity - TOLERANCE
