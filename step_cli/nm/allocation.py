"""An N for each layer from its weights alone, under a budget of weights to keep.

Shares by ERK (RigL, Evci et al. 2020), as in DominoSearch (Sun et al., NeurIPS 2021),
then moves by retained norm, the sum of squares that each N keeps. All layers keep their
M.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.errors import UsageError
from step_cli.nm.pattern import NMPattern, Plan
from step_cli.nm.tensor_data import TensorData, row_pieces, values_of
from step_cli.nm.threads import in_order

PIECE = 1 << 18  # weights sorted at a time


def kept_squares(weights: TensorData, m: int, axis: int) -> dict[int, float]:
    """The sum of squares that the N largest of each M keep, for each N allowed.

    Args:
        weights: Finite numbers, or integer codes with a zero point.
        m: M, which divides the size of the axis.
        axis: The group axis.
    """
    pieces = row_pieces(weights, m if axis == 0 else 1, PIECE)
    tasks = (partial(_sorted_squares, weights, rows, m, axis) for rows in pieces)
    squares = sum(in_order(tasks), start=np.zeros(m))
    return {n: float(squares[:n].sum()) for n in allowed(m)}


def _sorted_squares(
    weights: TensorData, rows: slice, m: int, axis: int
) -> npt.NDArray[Any]:
    """The sum over groups of the largest of each, of the next largest, and so on."""
    values = np.moveaxis(values_of(weights, rows), axis, -1)
    groups = np.square(values.reshape(-1, m), dtype=np.float64)
    groups.sort(axis=1)
    total: npt.NDArray[Any] = groups.sum(axis=0)[::-1]
    return total


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


def allocate(
    energies: Mapping[str, Mapping[int, float]],
    shapes: Mapping[str, Sequence[int]],
    plan: Plan,
    density: float,
) -> Plan:
    """Choose each layer's N from its weights alone, without data.

    ERK shares, rounded to the allowed N; then N is halved where that loses least
    squared weight for each weight removed, until at most ``density`` of all is kept,
    and doubled where it wins most while that still fits.

    Args:
        energies: Of each layer, the sum of squares that each N of `allowed` keeps.
        shapes: Of each layer's weight.
        plan: The layers; their M stays.
        density: Share of all weights to keep.

    Raises:
        UsageError: One of M in every layer is already more than ``density``.
    """
    shapes = {name: shapes[name] for name in plan}
    erk = erk_sparsities(shapes, 1 - density)
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
