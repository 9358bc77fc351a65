"""SparseGPT: prune column by column, and let the columns to come make up for it.

With H = 2 X X^T / n and H^-1 = U^T U, U upper triangular, pruning w_i costs
(w_i / U_ii)^2 and is made up for by taking w_i / U_ii * U_i,: from what lies right of
it. Columns are taken in blocks, so that the rest is updated once per block.

Source: Frantar and Alistarh, ICML 2023, arXiv 2301.00774, section 3 and algorithm 1.
The mask of a group is chosen at its first column, from weights already updated.
"""

import logging

import torch
from torch import Tensor

from step_cli.errors import NonFiniteError, UsageError
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.oneshot.layer_matrix import LayerMatrix
from step_cli.optim.mask import check_groups, keep_mask

log = logging.getLogger(__name__)

DAMPS = (0.01, 0.1, 1.0)  # of the mean of the diagonal; the authors' is the first
BLOCK = 128  # columns that are updated together, where M divides it


class SingularError(UsageError):
    """A Hessian is not positive definite, not even with its damping."""


class InputHessian:
    """The running mean of 2 X X^T over calibration tokens, for each part of a layer.

    n counts tokens. The authors count sequences: a factor that changes neither the mask
    nor the update, as damping is relative to the mean of the diagonal.

    Attributes:
        hessian: ``[parts, in, in]``, in at least fp32; empty before the first rows.
        tokens: How many it is the mean of.
    """

    def __init__(self) -> None:
        self.hessian = torch.empty(0)
        self.tokens = 0

    def add(self, rows: Tensor) -> None:
        """Count in what the layer multiplies, ``[parts, tokens, in]``.

        Raises:
            UsageError: Not as many features as the Hessian has.
        """
        parts, new, width = rows.shape
        if not self.hessian.numel():
            dtype = torch.promote_types(rows.dtype, torch.float32)
            self.hessian = rows.new_zeros(parts, width, width, dtype=dtype)
        if self.hessian.shape != (parts, width, width):
            raise UsageError(
                f"the layer has {self.hessian.shape[-1]} inputs, got {width}"
            )
        if not new:
            return
        count = self.tokens + new
        old_share, scale = self.tokens / count, 2 / count
        for hessian, part in zip(self.hessian, rows.to(self.hessian), strict=True):
            hessian.addmm_(part.t(), part, beta=old_share, alpha=scale)
        self.tokens = count

    @property
    def unused(self) -> int:
        """How many inputs were zero in every row."""
        return int((self.hessian.diagonal(dim1=1, dim2=2) == 0).sum())

    @property
    def inputs(self) -> int:
        """How many inputs there are."""
        return self.hessian.shape[0] * self.hessian.shape[-1]


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
    dtype = torch.promote_types(weight.dtype, hessian.dtype)
    dtype = torch.promote_types(dtype, torch.float32)
    rows = weight.detach() if axis == 1 else weight.detach().t()
    rows, hessian = rows.to(dtype, copy=True), hessian.to(dtype)
    rows[:, hessian.diagonal() == 0] = 0
    factor = inverse_factor(damped(hessian, damp))
    width = rows.shape[1]
    for start in range(0, width, block):
        stop = min(start + block, width)
        inside = slice(start, stop)
        errors = _prune_block(rows[:, inside], factor[inside, inside], pattern)
        rows[:, stop:] -= errors @ factor[inside, stop:]
    rows = rows if axis == 1 else rows.t()
    return rows.to(weight.dtype).contiguous()


def _prune_block(rows: Tensor, factor: Tensor, pattern: NMPattern) -> Tensor:
    """Prune ``rows``, ``[out, block]``, in place; return e of each weight."""
    errors = torch.zeros_like(rows)
    scale = factor.diagonal()
    keep = torch.empty(0)
    for i in range(rows.shape[1]):
        place = i % pattern.m
        if place == 0:
            group = slice(i, i + pattern.m)
            # Ranks as w^2 / U_ii^2 does, and small weights do not underflow.
            keep = keep_mask(rows[:, group].abs() / scale[group], pattern, 1)
        pruned = ~keep[:, place]
        errors[:, i] = torch.where(pruned, rows[:, i], 0) / scale[i]
        rows[:, i + 1 :] -= torch.outer(errors[:, i], factor[i, i + 1 :])
        rows[:, i].masked_fill_(pruned, 0)
    return errors


def damped(hessian: Tensor, damp: float) -> Tensor:
    """The Hessian that is inverted: 1 for inputs never seen, then ``damp`` added.

    Args:
        hessian: ``[in, in]``.
        damp: Share of the mean of the diagonal that each of its entries is raised by.
    """
    hessian = hessian.clone()
    diagonal = hessian.diagonal()
    diagonal[diagonal == 0] = 1
    diagonal += damp * diagonal.mean()
    return hessian


def inverse_factor(hessian: Tensor) -> Tensor:
    """The upper triangular U, positive on its diagonal, with H^-1 = U^T U.

    Raises:
        SingularError: H is not positive definite.
    """
    # H = R R^T with R upper is the Cholesky factor of H flipped; U = R^-1. The paper
    # factors the inverse: the same U, for more work and with more rounding.
    lower, failed = torch.linalg.cholesky_ex(hessian.flip(0, 1))
    if bool(failed):
        raise SingularError(
            "the Hessian of the inputs is not positive definite; raise damp, or "
            "calibrate with more tokens"
        )
    one = torch.eye(len(hessian), dtype=hessian.dtype, device=hessian.device)
    factor: Tensor = torch.linalg.solve_triangular(lower.flip(0, 1), one, upper=True)
    return factor


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
    if not bool(torch.isfinite(weight).all() and torch.isfinite(hessian).all()):
        raise NonFiniteError("a weight or the Hessian of the inputs is not finite")


def sparsegpt_weight(
    weight: Tensor, view: LayerMatrix, seen: InputHessian, spec: NMSpec
) -> Tensor:
    """The pruned and updated weight of a layer, in its own shape and dtype.

    Raises:
        UsageError: Its groups do not run along the inputs, or M does not fit.
    """
    if spec.axis != view.input_axis:
        raise UsageError(
            f"SparseGPT prunes along the inputs, axis {view.input_axis}, not "
            f"{spec.axis}; use --method wanda or --exclude it"
        )
    m = spec.pattern.m
    block = max(BLOCK // m, 1) * m
    pruned = [
        _damped_enough(part, hessian, spec.pattern, block)
        for part, hessian in zip(view.of_weight(weight), seen.hessian, strict=True)
    ]
    return view.to_weight(torch.stack(pruned)).contiguous()


def _damped_enough(
    matrix: Tensor, hessian: Tensor, pattern: NMPattern, block: int
) -> Tensor:
    """Damp more where the authors' 1 % leaves the Hessian singular in fp32."""
    for damp in DAMPS[:-1]:
        try:
            return sparsegpt_prune(matrix, hessian, pattern, damp, block)
        except SingularError:
            log.info("a Hessian is singular with damping %g, more is used", damp)
    return sparsegpt_prune(matrix, hessian, pattern, DAMPS[-1], block)
