"""STEP's Algorithm 1 (Lu et al., ICML 2023) line by line, in the paper's letters, slow.

The oracle of the tests, and the page to read first: `optimizer.py` computes the same
for whole models, any recipe and any training loop. Three departures from the letter:
t starts at 1, as 1 - beta1^0 is 0; epsilon stands outside the root, and v* is corrected
for the t0 steps it has learned, both as in PyTorch's Adam. ``literal=True`` has the
last two as the paper prints them.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from step_cli.nm.pattern import NMPattern

Gradient = Callable[[list[Tensor], int], list[Tensor]]


def step_reference(
    w: Sequence[Tensor],
    gradient: Gradient,
    *,
    T: int,
    t0: int,
    NM: Sequence[NMPattern | None],
    gamma: float,
    beta1: float = 0.9,
    beta2: float = 0.999,
    epsilon: float = 1e-8,
    decay: float = 0.0,
    literal: bool = False,
) -> tuple[list[Tensor], list[Tensor]]:
    """Train by STEP.

    Args:
        w: Initial weights; groups run along the last axis.
        gradient: Of f, at the weights it is given, on the batch of step t.
        T: Number of steps.
        t0: The switch point: v is learned up to this step, and frozen after it.
        NM: The pattern of each weight; None for one that stays dense.
        gamma: Learning rate.
        beta1: Decay of m.
        beta2: Decay of v.
        epsilon: Added to the root, or inside it.
        decay: Decoupled weight decay, which the paper does not have.
        literal: Epsilon inside the root and v* uncorrected, as printed.

    Returns:
        What the model holds, mask * w, and the dense w it is made of.
    """
    w = [x.detach().clone() for x in w]
    m = [torch.zeros_like(x) for x in w]
    v = [torch.zeros_like(x) for x in w]

    def masked() -> list[Tensor]:
        return [x * Pi(x, nm) for x, nm in zip(w, NM, strict=True)]

    for t in range(1, T + 1):
        precondition = t <= t0
        g = gradient(w if precondition else masked(), t)
        for i in range(len(w)):
            m[i] = beta1 * m[i] + (1 - beta1) * g[i]
            if precondition:
                v[i] = beta2 * v[i] + (1 - beta2) * g[i] ** 2
            m_hat = m[i] / (1 - beta1**t)
            learned = min(t, t0)
            raw = literal and not precondition
            v_hat = v[i] if raw else v[i] / (1 - beta2**learned)
            root = (v_hat + epsilon).sqrt() if literal else v_hat.sqrt() + epsilon
            w[i] = w[i] - gamma * decay * w[i] - gamma * m_hat / root
    return (masked() if t0 <= T else list(w)), list(w)


def Pi(w: Tensor, nm: NMPattern | None) -> Tensor:
    """The mask of w: 1 for the N of each M consecutive weights of largest magnitude.

    Of equal ones the first is kept.
    """
    mask = torch.ones(w.shape, dtype=w.dtype)
    if nm is None:
        return mask
    for group, kept in zip(w.reshape(-1, nm.m), mask.view(-1, nm.m), strict=True):
        order = sorted(range(nm.m), key=lambda j: (-abs(float(group[j])), j))
        for j in order[nm.n :]:
            kept[j] = 0.0
    return mask
