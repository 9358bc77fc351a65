"""Wanda: weights scored by what they multiply, pruned once, never updated.

The score is |W_ij| * ||X_j||_2, X_j input feature j over the calibration tokens; the N
highest of each group of each row are kept. The authors' code takes the root of a mean
where this takes a norm: one factor for all features, so the mask is the same.

Source: Sun et al., ICLR 2024, arXiv 2306.11695, equation 1 and section 3.
"""

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from step_cli.errors import NonFiniteError, UsageError
from step_cli.nm.groups import Mask
from step_cli.nm.pattern import NMSpec
from step_cli.oneshot.layer_matrix import LayerMatrix
from step_cli.optim.mask import keep_mask, to_groups

WEIGHTS = 1 << 19  # that are scored together, so that the work stays in the cache


class InputNorms:
    """The L2 norm of each input of a layer; ``norms`` is ``[parts, columns]``."""

    def __init__(self) -> None:
        self.norms = torch.zeros(())

    def add(self, rows: Tensor) -> None:
        """Count in what the layer multiplies, ``[parts, rows, columns]``."""
        found = torch.stack([input_norms(part) for part in rows])
        self.norms = torch.hypot(self.norms.to(found.device), found)

    @property
    def unused(self) -> int:
        """How many inputs were zero in every row."""
        return int((self.norms == 0).sum())

    @property
    def inputs(self) -> int:
        """How many inputs there are."""
        return self.norms.numel()


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
    scores = weight.detach().to(torch.float64, copy=True).abs_().mul_(norms)
    if scores.numel() and not bool(torch.stack(scores.aminmax()).isfinite().all()):
        raise NonFiniteError("a weight or an input norm is NaN or infinite")
    return scores


def wanda_keep(
    weight: Tensor,
    view: LayerMatrix,
    seen: InputNorms,
    spec: NMSpec,
    choose: Callable[[Tensor], Mask] | None = None,
) -> Mask:
    """Mark the weights of a layer that Wanda keeps.

    The highest scores of each group, and all of a group that has N:M already.

    Args:
        weight: Of the layer, in its own shape.
        view: The layer's module as a matrix.
        seen: The norms of the layer's inputs; the work is done where they are.
        spec: The pattern and its axis.
        choose: Turns scores into a mask; by default N:M along the axis.
    """
    if choose is None and weight.dim() == 2:
        return _keep_of_matrix(weight, seen.norms[0], spec, view.input_axis)
    weight = weight.to(seen.norms.device).float()
    parts = zip(view.of_weight(weight), seen.norms, strict=True)
    scores = view.to_weight(torch.stack([wanda_scores(w, norms) for w, norms in parts]))
    scores = scores.contiguous()
    if choose is not None:
        return choose(scores.cpu())
    return _keep(weight, scores, spec)


def _keep_of_matrix(
    weight: Tensor, norms: Tensor, spec: NMSpec, input_axis: int
) -> Mask:
    """The same for some rows of a matrix at a time: scores are large."""
    keep = np.empty(tuple(weight.shape), np.bool_)
    step = max(1, WEIGHTS // max(1, weight.shape[1]) // spec.pattern.m) * spec.pattern.m
    for first in range(0, len(weight), step):
        rows = slice(first, first + step)
        part = weight[rows].to(norms.device).float()
        of_part = norms if input_axis == 1 else norms[rows]
        keep[rows] = _keep(part, wanda_scores(part, of_part, input_axis), spec)
    return keep


def _keep(weight: Tensor, scores: Tensor, spec: NMSpec) -> Mask:
    keep = keep_mask(scores, spec.pattern, spec.axis)
    if int(torch.count_nonzero(weight)) < weight.numel():
        groups = to_groups(weight, spec.pattern.m, spec.axis)
        complies = groups.ne(0).sum(1, keepdim=True).le(spec.pattern.n)
        keep |= complies.expand(groups.shape).reshape(weight.shape)
    mask: Mask = keep.cpu().numpy()
    return mask
