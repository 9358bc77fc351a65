"""DominoSearch's arithmetic: which N each layer is to have (Sun et al., NeurIPS 2021).

All layers keep their M. A layer's N falls by votes of its groups, faster where a layer
is denser than its ERK share and where it costs more operations. ``domino_search.py``
has the loop; :func:`allocate` does without one.
"""

from collections.abc import Mapping

from torch import Tensor

from step_cli.nm import allocation
from step_cli.nm.pattern import NMPattern, NMSpec, Plan
from step_cli.optim.mask import magnitude_mask, masked, to_groups

VOTES_NEEDED = 0.75  # share of groups
NEAR_SHARE = 0.01  # a layer this near its ERK share is not pulled
TOLERANCE = 0.001  # of the sparsity that ends the search


def thresholds(weight: Tensor, plan: NMSpec) -> Tensor:
    """T_g: mean of the smaller half of each group's magnitudes, ``[X, 1, B]``."""
    groups = to_groups(weight.abs(), plan.pattern.m, plan.axis)
    return groups.sort(dim=1).values[:, : plan.pattern.m // 2].mean(1, keepdim=True)


def vote(weight: Tensor, limits: Tensor, n: int, plan: NMSpec) -> float:
    """Share of groups of which fewer than ``n`` magnitudes exceed the group's limit."""
    groups = to_groups(weight.abs(), plan.pattern.m, plan.axis)
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
