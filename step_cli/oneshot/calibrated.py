"""Wanda and SparseGPT for one layer of any type: what its inputs are, what to keep."""

import logging
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from step_cli.errors import NonFiniteError, UsageError
from step_cli.nm.groups import Mask
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.oneshot.layer_matrix import LayerMatrix
from step_cli.oneshot.sparsegpt import InputHessian, SingularError, sparsegpt_prune
from step_cli.oneshot.wanda import input_norms, wanda_scores
from step_cli.optim.mask import keep_mask, to_groups

log = logging.getLogger(__name__)

DAMPS = (0.01, 0.1, 1.0)  # of the mean of the diagonal
BLOCK = 128  # columns SparseGPT updates together, where M divides it


class InputStatistics(Protocol):
    """What a method needs to know of the inputs of a layer, for each part of it."""

    def add(self, rows: Tensor) -> None:
        """Count in what the layer multiplies, ``[parts, rows, columns]``."""

    @property
    def unused(self) -> int:
        """How many inputs were zero in every row."""


class InputNorms:
    """The L2 norm of each column, for Wanda; ``norms`` is ``[parts, columns]``."""

    def __init__(self) -> None:
        self.norms = torch.zeros(())

    def add(self, rows: Tensor) -> None:
        """Count in rows."""
        refuse_nonfinite(rows)
        found = torch.stack([input_norms(part) for part in rows])
        self.norms = torch.hypot(self.norms, found)

    @property
    def unused(self) -> int:
        """How many inputs were zero in every row."""
        return int((self.norms == 0).sum())


class InputHessians:
    """The Hessian of each part, for SparseGPT."""

    def __init__(self) -> None:
        self.parts: list[InputHessian] = []

    def add(self, rows: Tensor) -> None:
        """Count in rows."""
        refuse_nonfinite(rows)
        if not self.parts:
            dtype = torch.promote_types(rows.dtype, torch.float32)
            self.parts = [InputHessian(part.shape[-1], dtype=dtype) for part in rows]
        for part, hessian in zip(rows, self.parts, strict=True):
            hessian.add(part)

    @property
    def unused(self) -> int:
        """How many inputs were zero in every row."""
        return sum(int((part.hessian.diagonal() == 0).sum()) for part in self.parts)


def refuse_nonfinite(rows: Tensor) -> None:
    """Raise NonFiniteError for an input that is NaN or infinite."""
    if not bool(torch.isfinite(rows).all()):
        raise NonFiniteError(
            "an input of this layer is NaN or infinite; look at the calibration data"
        )


def wanda_keep(
    weight: Tensor,
    view: LayerMatrix,
    seen: InputNorms,
    plan: NMSpec,
    choose: Callable[[Tensor], Mask] | None = None,
) -> Mask:
    """Which weights Wanda keeps: those with the highest scores, and all that comply.

    Args:
        weight: Of the layer, in its own shape.
        view: Of its module.
        seen: Of its inputs.
        plan: The pattern and its axis.
        choose: Turns scores into a mask; by default N:M along the axis.
    """
    parts = zip(view.of_weight(weight), seen.norms, strict=True)
    scores = view.to_weight(torch.stack([wanda_scores(w, norms) for w, norms in parts]))
    scores = scores.contiguous()
    if choose is not None:
        return choose(scores)
    keep = keep_mask(scores, plan.pattern, plan.axis)
    groups = to_groups(weight, plan.pattern.m, plan.axis)
    complies = groups.ne(0).sum(1, keepdim=True).le(plan.pattern.n)
    keep |= complies.expand(groups.shape).reshape(weight.shape)
    mask: Mask = keep.numpy()
    return mask


def sparsegpt_weight(
    weight: Tensor, view: LayerMatrix, seen: InputHessians, plan: NMSpec
) -> Tensor:
    """The pruned and updated weight of a layer, in its own shape and dtype.

    Raises:
        UsageError: Its groups do not run along the inputs, or M does not fit.
    """
    if plan.axis != view.input_axis:
        raise UsageError(
            f"SparseGPT prunes along the inputs, axis {view.input_axis}, not "
            f"{plan.axis}; use --method wanda or --exclude it"
        )
    m = plan.pattern.m
    block = max(BLOCK // m, 1) * m
    pruned = [
        _damped_enough(part, seen_part.hessian, plan.pattern, block)
        for part, seen_part in zip(view.of_weight(weight), seen.parts, strict=True)
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
