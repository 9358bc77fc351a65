"""How a weight comes into the body of a Loop or Scan."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
from formats.onnx.random_graphs.growth import Draft, Target, draft
from formats.onnx.random_graphs.values import EITHER, OPAQUE, Array, Value


def changing(rng: random.Random, target: Target) -> Draft | None:
    """Carried by a Loop of two trips, and changed after the first one."""
    square = target.rank == 2 and len(set(target.shape)) == 1
    change = "Transpose" if square and rng.random() < 0.8 else "Neg"
    if change == "Neg" and target.dtype != "float32":
        return None
    if target.zero is not None and len(np.unique(target.zero)) > 1:
        return None  # what means zero in the first trip does not in the second
    value = Value(target.shape, target.dtype)

    def write(scope: Any, names: list[str]) -> Any:
        return scope.carry(names[0], value, change)

    kind = EITHER if change == "Transpose" else OPAQUE
    return draft(target, f"carried {change}", write, kind=kind)


def scanned(target: Target, trips: int) -> Draft:
    """One matrix for each trip of a Scan."""

    def write(scope: Any, names: list[str]) -> Any:
        return scope.element(names[0])

    def pull(ids: Array, fill: int) -> list[Array]:
        return [np.stack([ids] * trips)]

    made = draft(target, "Scan input", write, pull)
    return replace(made, targets=[_apart(made.targets[0], trips)])


def _apart(target: Target, trips: int) -> Target:
    """Each trip has outputs of its own."""
    count = int(target.outputs.max()) + 1
    trip = np.arange(trips).reshape(-1, *(1,) * (target.rank - 1))
    return replace(target, outputs=target.outputs + count * trip)
