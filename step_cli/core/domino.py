"""DominoSearch's arithmetic: which N each layer is to have (Sun et al., NeurIPS 2021).

All layers keep their M. A layer's N falls by votes of its groups, faster where a layer
is denser than its ERK share and where it costs more operations. ``domino_search.py``
has the loop; :func:`allocate` does without one.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from step_cli.core.mask import magnitude_mask, masked, to_groups
from step_cli.core.pattern import NMPattern
from step_cli.core.plan import LayerPlan, Plan
from step_cli.errors import UsageError

VOTES_NEEDED = 0.75  # share of groups
NEAR_SHARE = 0.01  # a layer this near its ERK share is not pulled
TOLERANCE = 0.001  # of the sparsity that ends the search


def allowed(m: int) -> list[int]:
    """The N that may be committed: M and the powers of two below it, ascending."""
    return sorted({m, *(1 << s for s in range(m.bit_length()) if 1 << s <= m)})


def erk_sparsities(
    shapes: Mapping[str, Sequence[int]], sparsity: float
) -> dict[str, float]:
    """Sparsity of each layer in proportion to 1 - sum(dims) / prod(dims) (RigL's ERK).

    Args:
        shapes: Of each layer's weight, kernel sizes included.
        sparsity: Overall, of all weights together.
    """
    count = {name: math.prod(shape) for name, shape in shapes.items()}
    raw = {name: sum(shape) / count[name] for name, shape in shapes.items()}
    dense: set[str] = set()
    while len(dense) < len(shapes):
        budget = -sum(math.floor(sparsity * count[name]) for name in dense)
        rest = shapes.keys() - dense
        budget += sum(count[n] - math.floor(sparsity * count[n]) for n in rest)
        scale = budget / sum(raw[name] * count[name] for name in rest)
        highest = max(raw[name] for name in rest)
        if highest * scale <= 1:
            return {n: 0.0 if n in dense else 1 - scale * raw[n] for n in shapes}
        dense |= {name for name in rest if raw[name] == highest}
    return dict.fromkeys(shapes, 0.0)


def thresholds(weight: Tensor, plan: LayerPlan) -> Tensor:
    """T_g: mean of the smaller half of each group's magnitudes, ``[X, 1, B]``."""
    groups = to_groups(weight.abs(), plan.pattern.m, plan.axis)
    return groups.sort(dim=1).values[:, : plan.pattern.m // 2].mean(1, keepdim=True)


def vote(weight: Tensor, limits: Tensor, n: int, plan: LayerPlan) -> float:
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
    """Choose each layer's N from its weights alone, without data.

    ERK shares, rounded to the allowed N; then N is halved where that loses least
    squared weight for each weight removed, until at most ``density`` of all is kept,
    and doubled where it wins most while that still fits.

    Args:
        weights: By name, at least those of ``plan``.
        plan: The layers; their M stays.
        density: Share of all weights to keep.

    Raises:
        UsageError: One of M in every layer is already more than ``density``.
    """
    shapes = {name: tuple(weights[name].shape) for name in plan}
    erk = erk_sparsities(shapes, 1 - density)
    energies = {name: _energies(weights[name], layer) for name, layer in plan.items()}
    chosen = {
        name: min(
            energies[name], key=lambda n: abs(n / layer.pattern.m - 1 + erk[name])
        )
        for name, layer in plan.items()
    }
    budget = density * sum(math.prod(shape) for shape in shapes.values()) * (1 + 1e-12)

    def kept(ns: Mapping[str, int]) -> float:
        return sum(math.prod(shapes[k]) * n / plan[k].pattern.m for k, n in ns.items())

    def moves(up: bool) -> list[tuple[float, str, int]]:
        """Energy per weight of each possible move, the layer, and its new N."""
        found = []
        for name, n in chosen.items():
            steps = [k for k in energies[name] if (k > n if up else k < n)]
            if steps:
                to = min(steps) if up else max(steps)
                change = energies[name][to] - energies[name][n]
                weights_moved = kept({name: to}) - kept({name: n})
                found.append((change / weights_moved, name, to))
        return found

    while kept(chosen) > budget and (down := moves(up=False)):
        _, name, n = min(down)
        chosen[name] = n
    if kept(chosen) > budget:
        raise UsageError(f"density {density:g} is less than one weight of every group")
    while fit := [m for m in moves(up=True) if kept({**chosen, m[1]: m[2]}) <= budget]:
        _, name, n = max(fit)
        chosen[name] = n
    return with_n(plan, chosen)


def with_n(plan: Plan, chosen: Mapping[str, int]) -> Plan:
    """``plan`` with another N for each layer."""
    return {
        name: replace(layer, pattern=NMPattern(chosen[name], layer.pattern.m))
        for name, layer in plan.items()
    }


def _energies(weight: Tensor, layer: LayerPlan) -> dict[int, float]:
    """Sum of squares that each allowed N keeps."""
    dense = weight.detach().float()
    found = {}
    for n in allowed(layer.pattern.m):
        keep = magnitude_mask(dense, NMPattern(n, layer.pattern.m), layer.axis)
        found[n] = float(masked(dense, keep).double().square().sum())
    return found
