"""Wanda: weights scored by what they multiply, pruned once, never updated.

The score is |W_ij| * ||X_j||_2, X_j input feature j over the calibration tokens; the N
highest of each group of each row are kept. The authors' code takes the root of a mean
where this takes a norm: one factor for all features, so the mask is the same.

Source: Sun et al., ICLR 2024, arXiv 2306.11695, equation 1 and section 3.
"""

import torch
from torch import Tensor

from step_cli.errors import NonFiniteError, UsageError


def input_norms(inputs: Tensor) -> Tensor:
    """The L2 norm of each input feature over all tokens.

    Norms of two batches join with ``torch.hypot``.

    Args:
        inputs: What the layer multiplies, ``[..., in]``.

    Returns:
        ``[in]``, in at least fp32.
    """
    tokens = inputs.detach().reshape(-1, inputs.shape[-1])
    dtype = torch.promote_types(tokens.dtype, torch.float32)
    norms: Tensor = torch.linalg.vector_norm(tokens, dim=0, dtype=dtype)
    return norms


def wanda_scores(weight: Tensor, input_norms: Tensor, axis: int = 1) -> Tensor:
    """Score each weight by its magnitude times the norm of its input feature.

    Args:
        weight: A matrix, ``[out, in]``, or ``[in, out]`` as Conv1D of GPT-2 has it.
        input_norms: Of each input feature, ``[in]``.
        axis: The input axis of ``weight``: 1, or 0 for Conv1D.

    Returns:
        Scores for `nm_mask` along the same axis, shape of ``weight``, in fp64: there
        the product of two fp32 numbers is exact, so equal norms rank as magnitude does.

    Raises:
        UsageError: Not a matrix, or not one norm for each input.
        NonFiniteError: A weight or a norm is NaN or infinite.
    """
    if weight.dim() != 2 or axis not in (0, 1):
        raise UsageError(
            f"Wanda scores the matrix of a linear layer along axis 0 or 1, "
            f"got shape {tuple(weight.shape)} and axis {axis}; exclude this layer"
        )
    if tuple(input_norms.shape) != (weight.shape[axis],):
        raise UsageError(
            f"axis {axis} of shape {tuple(weight.shape)} needs {weight.shape[axis]} "
            f"norms, got shape {tuple(input_norms.shape)}"
        )
    norms = input_norms.double().unsqueeze(1 - axis)
    scores = weight.detach().double().abs() * norms
    if not bool(torch.isfinite(scores).all()):
        raise NonFiniteError("a weight or an input norm is NaN or infinite")
    return scores
