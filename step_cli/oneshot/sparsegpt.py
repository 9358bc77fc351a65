"""SparseGPT: prune column by column, and let the columns to come make up for it.

With H = 2 X X^T / n and H^-1 = U^T U, U upper triangular, pruning w_i costs
(w_i / U_ii)^2 and is made up for by taking w_i / U_ii * U_i,: from what lies right of
it. What lies far right is updated for many columns at once, by one matrix product.

Source: Frantar and Alistarh, ICML 2023, arXiv 2301.00774, section 3 and algorithm 1.
The mask of a group is chosen at its first column, from weights already updated.
"""

import torch
from torch import Tensor

from step_cli.errors import UsageError
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.oneshot.hessian import (
    DAMPS,
    InputHessian,
    InverseFactor,
    SingularError,
    damped,
    inverse_factor,
    invert_in_place,
    refuse_nonfinite,
)
from step_cli.oneshot.layer_matrix import LayerMatrix
from step_cli.optim.mask import check_groups, keep_mask

__all__ = [
    "InputHessian",
    "SingularError",
    "damped",
    "inverse_factor",
    "sparsegpt_prune",
    "sparsegpt_weight",
]

BLOCK = 128  # columns that are pruned one after another, where M divides it
WEIGHTS = 1 << 25  # that are worked on together, in whole rows


def sparsegpt_prune(
    weight: Tensor,
    hessian: Tensor,
    pattern: NMPattern | str,
    damp: float = DAMPS[0],
    block: int = BLOCK,
    *,
    axis: int = 1,
) -> Tensor:
    """Prune a matrix to N:M and update what is kept, so that its output changes little.

    Of equal costs the weight of the lower index is kept. An input that was never seen
    has its weights set to zero. The work is done in at least fp32.

    Args:
        weight: ``[out, in]``, or ``[in, out]`` as Conv1D of GPT-2 has it; not changed.
        hessian: Of the layer's input, ``[in, in]``, see `InputHessian`.
        pattern: The N:M pattern, or its text such as ``"2:4"``.
        damp: Added to the diagonal, as a share of its mean.
        block: Columns pruned before the columns right of them are updated.
        axis: The input axis of ``weight``: 1, or 0 for Conv1D.

    Returns:
        The pruned weight, of the shape and dtype of ``weight``.

    Raises:
        UsageError: M does not divide block and width, shapes do not fit, ``damp`` is
            negative, or the damped Hessian is not positive definite.
        NonFiniteError: A weight or the Hessian is NaN or infinite.
    """
    pattern = NMPattern.of(pattern)
    _check(weight, hessian, pattern, damp, block, axis)
    refuse_nonfinite(hessian)
    dtype = torch.promote_types(weight.dtype, hessian.dtype)
    hessian = hessian.to(torch.promote_types(dtype, torch.float32))
    factor = damped(hessian, damp)
    invert_in_place(factor)
    inverse = InverseFactor(factor, hessian.diagonal() == 0)
    matrix = weight.detach() if axis == 1 else weight.detach().t()
    pruned = prune_by_factor(matrix, inverse, pattern, block)
    return (pruned if axis == 1 else pruned.t()).contiguous()


def prune_by_factor(
    matrix: Tensor, inverse: InverseFactor, pattern: NMPattern, block: int
) -> Tensor:
    """Prune a matrix, ``[out, in]``, some of its rows at a time; they are independent.

    Args:
        matrix: The weights, on any device; the work is done where the factor is.
        inverse: Of the Hessian of its inputs.
        pattern: The N:M pattern; M divides ``block`` and the width.
        block: Columns pruned one after another.

    Returns:
        The pruned matrix, of the dtype and on the device of ``matrix``.

    Raises:
        NonFiniteError: A weight is NaN or infinite.
    """
    upper, width = inverse.upper, matrix.shape[1]
    pruned = torch.empty_like(matrix, memory_format=torch.contiguous_format)
    count = max(1, WEIGHTS // max(1, width))
    parts = torch.split(matrix, count), torch.split(pruned, count)
    for rows, out in zip(*parts, strict=True):
        columns = rows.t().to(upper, copy=True, memory_format=torch.contiguous_format)
        refuse_nonfinite(columns)
        columns[inverse.unused] = 0
        _prune_columns(columns, torch.empty_like(columns), upper, pattern, block)
        out.copy_(columns.t())
    return pruned


def _prune_columns(
    columns: Tensor, errors: Tensor, factor: Tensor, pattern: NMPattern, block: int
) -> None:
    """Prune ``columns``, ``[in, out]``, in place: one half, an update, the other.

    ``errors``, of their shape, gets e = w / U_ii of each weight that is pruned, else 0.
    """
    if len(columns) <= block:
        _prune_block(columns, errors, factor, pattern)
        return
    half = block * -(-len(columns) // (2 * block))
    _prune_columns(columns[:half], errors[:half], factor[:half, :half], pattern, block)
    columns[half:].addmm_(factor[:half, half:].t(), errors[:half], alpha=-1)
    _prune_columns(columns[half:], errors[half:], factor[half:, half:], pattern, block)


def _prune_block(
    columns: Tensor, errors: Tensor, factor: Tensor, pattern: NMPattern
) -> None:
    scale = factor.diagonal().unsqueeze(1)
    for first in range(0, len(columns), pattern.m):
        group = slice(first, first + pattern.m)
        inside, behind = columns[group], columns[group.stop :]
        # Ranks as w^2 / U_ii^2 does, and small weights do not underflow.
        keep = keep_mask(inside.abs() / scale[group], pattern, 0)
        for i in range(pattern.m):
            error, u = errors[first + i], factor[first + i, group]
            torch.div(inside[i].masked_fill(keep[i], 0), scale[first + i], out=error)
            inside[i + 1 :] -= torch.outer(u[i + 1 :], error)
        inside.masked_fill_(~keep, 0)
        behind.addmm_(factor[group, group.stop :].t(), errors[group], alpha=-1)


def _check(
    weight: Tensor,
    hessian: Tensor,
    pattern: NMPattern,
    damp: float,
    block: int,
    axis: int,
) -> None:
    if weight.dim() != 2 or axis not in (0, 1):
        raise UsageError(
            f"SparseGPT prunes the matrix of a linear layer along axis 0 or 1, "
            f"got shape {tuple(weight.shape)} and axis {axis}; exclude this layer"
        )
    check_groups(tuple(weight.shape), pattern, axis)
    if block < 1 or block % pattern.m:
        raise UsageError(f"block {block} is not a multiple of M={pattern.m}")
    width = weight.shape[axis]
    if tuple(hessian.shape) != (width, width):
        raise UsageError(
            f"axis {axis} of shape {tuple(weight.shape)} needs a Hessian of "
            f"{width}x{width}, got shape {tuple(hessian.shape)}"
        )
    if not damp >= 0:
        raise UsageError(f"damp {damp} is below 0")


def sparsegpt_weight(
    weight: Tensor, view: LayerMatrix, seen: InputHessian, spec: NMSpec
) -> Tensor:
    """The pruned and updated weight of a layer, in its own shape and dtype.

    Raises:
        UsageError: Its groups do not run along the inputs, or M does not fit.
        NonFiniteError: A weight or the Hessian is NaN or infinite.
    """
    if spec.axis != view.input_axis:
        raise UsageError(
            f"SparseGPT prunes along the inputs, axis {view.input_axis}, not "
            f"{spec.axis}; use --method wanda or --exclude it"
        )
    check_groups(tuple(weight.shape), spec.pattern, spec.axis)
    m = spec.pattern.m
    block = max(BLOCK // m, 1) * m
    parts = zip(view.of_weight(weight), seen.inverses(), strict=True)
    pruned = [
        prune_by_factor(part, inverse, spec.pattern, block) for part, inverse in parts
    ]
    whole = pruned[0][None] if len(pruned) == 1 else torch.stack(pruned)
    return view.to_weight(whole).contiguous()
