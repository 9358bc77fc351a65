"""What a slow Adam would record: the oracle of the tests about switch points."""

import math
import random
from collections.abc import Iterable

from step_cli.autoswitch.autoswitch import VarianceSample

# beta2 = 0.5, two coordinates, v_0 = 0: the hand-worked example.
WORKED = [(2, 0), (2, 2), (2, 1), (1.5, 1.5)] + [(1.4, 1.2)] * 20


def samples(
    gradients: Iterable[tuple[float, ...]], beta2: float, scale: float = 1.0
) -> list[VarianceSample]:
    """One sample for each step of ``gradients``."""
    v: list[float] = []
    out = []
    for step, grads in enumerate(gradients, start=1):
        v = v or [0.0] * len(grads)
        new = [
            beta2 * a + (1 - beta2) * (scale * g) ** 2
            for a, g in zip(v, grads, strict=True)
        ]
        change = [abs(a - b) for a, b in zip(new, v, strict=True)]
        logs = [math.log(c) for c in change if c]
        out.append(
            VarianceSample(
                step,
                len(v),
                sum(new),
                math.sqrt(sum(a * a for a in new)),
                sum(change),
                sum(logs) / len(logs) if logs else None,
            )
        )
        v = new
    return out


def random_samples(seed: int, steps: int, beta2: float) -> list[VarianceSample]:
    """A run whose gradients shrink, with dead steps and dead coordinates."""
    rng = random.Random(seed)
    fall, noise = rng.uniform(0.9, 1.0), rng.uniform(0.1, 2)
    alive = [rng.random() > 0.2 for _ in range(3)]
    gradients = []
    for step in range(steps):
        quiet = rng.random() < 0.03
        gradients.append(
            tuple(
                0.0 if quiet or not ok else fall**step * (1 + noise * rng.gauss(0, 1))
                for ok in alive
            )
        )
    return samples(gradients, beta2)
