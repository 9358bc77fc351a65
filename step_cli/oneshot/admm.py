"""NxMTransformer: N:M as a constraint, met by ADMM.

min f(W) with W in N:M, by turns: W takes optimizer steps on f + rho/2 ||W - Z + U||^2,
Z is the N:M weight nearest to W + U, and U sums up what is left between them. The paper
writes "NxM" with M kept of N; here, as everywhere, N of M are kept.

Source: Holmes et al., NeurIPS 2021, arXiv 2110.15766, section 3.
"""

import torch
from torch import Tensor

from step_cli.nm.pattern import NMPattern
from step_cli.optim.mask import nm_mask


def admm_update(
    weight: Tensor, dual: Tensor, pattern: NMPattern | str, axis: int
) -> tuple[Tensor, Tensor]:
    """The Z-step, then the update of U.

    Args:
        weight: W, any shape.
        dual: The scaled dual U, shape of W; zero at the start.
        pattern: The N:M pattern, or its text such as ``"2:4"``.
        axis: The group axis.

    Returns:
        Z, which is W + U projected to N:M, and the new U = U + W - Z.

    Raises:
        UsageError: The axis does not exist, or its size is not a multiple of M.
        NonFiniteError: A weight is NaN, which has no rank.
    """
    moved = weight.detach() + dual
    target = torch.where(nm_mask(moved.abs(), pattern, axis), moved, 0)
    return target, moved - target


def admm_gradient(weight: Tensor, target: Tensor, dual: Tensor, rho: float) -> Tensor:
    """What the W-step adds to the gradient: rho (W - Z + U).

    Args:
        weight: W.
        target: Z.
        dual: U.
        rho: Strength of the pull, in gradient per unit of weight.
    """
    return rho * (weight.detach() - target + dual)
