"""Fit the kept weights of a layer anew: least squares under a fixed mask.

A row w0 of the dense layer keeps the weights S. With H of the inputs that the layer
gets in the pruned network, and d = ``damp`` times the mean of H's diagonal,

    w_S = (H_SS + d I)^-1 (H w0)_S,

is the w that is zero outside of S and makes |X (w - w0)|^2 + d |w|^2 least.

Two ways to the same w: a Cholesky factor for each row, in fp64, where rows are short;
else conjugate gradients for all rows at once, whose work is products with H. They run
in the dtype of H, with the diagonal as preconditioner, inside rounds of refinement by a
residual in fp64, until it is at most `TOLERANCE` of the right-hand side: on layers of
a trained network, errors of outputs were then within 0.1 % of the least.

Source: Frantar and Alistarh, ICML 2023, arXiv 2301.00774, equation 2; conjugate
gradients for it: Meng et al. (ALPS), NeurIPS 2024, arXiv 2406.07831.
"""

import logging
from collections.abc import Iterator

import torch
from torch import Tensor

from step_cli.errors import NonFiniteError, UsageError

log = logging.getLogger(__name__)

DAMP = 1e-3  # of the mean of the diagonal of H
SHORT = 128  # kept weights of a row, up to which a factor for each row costs less
TOLERANCE = 1e-3  # of residuals, both measured in the norm of the preconditioner
MEMORY = 1 << 26  # bytes of the factors, or the rows, that are worked on together
ROUNDS = 8  # of refinement at most
STEPS = 256  # of conjugate gradients in a round at most


def refit_rows(
    dense: Tensor, pruned: Tensor, hessian: Tensor, damp: float = DAMP
) -> Tensor:
    """Fit the weights that are not zero so that outputs are near those of ``dense``.

    What is zero stays zero. Weights of inputs that were never seen, those whose entry
    on the diagonal is 0, stay as they are.

    Args:
        dense: The weight before pruning, ``[out, in]``.
        pruned: The same after it, ``[out, in]``; its zeros are the mask.
        hessian: ``[in, in]``, X X^T of the inputs times any factor, such as
            `InputHessian` has.
        damp: Added to the diagonal, as a share of its mean.

    Returns:
        ``[out, in]``, in fp64.

    Raises:
        UsageError: Shapes do not fit, or ``damp`` is negative.
        NonFiniteError: A weight or the Hessian is NaN or infinite.
    """
    _check(dense, pruned, hessian, damp)
    fitted = pruned.to(torch.float64, copy=True)  # it may be mapped, read only
    diagonal = hessian.diagonal()
    support = (pruned != 0) & (diagonal > 0)
    damping = damp * float(diagonal.double().mean())
    sizes = support.sum(1)
    order = sizes.argsort(stable=True)  # rows of about one length together
    longest = int(sizes.max()) if len(sizes) else 0
    direct = longest <= SHORT
    width = longest**2 if direct else 2 * pruned.shape[1]
    for rows in torch.split(order, max(1, MEMORY // (8 * max(1, width)))):
        fit = _by_factors if direct else _by_gradients
        new = fit(dense[rows], fitted[rows], support[rows], hessian, damping)
        fitted[rows] = torch.where(support[rows], new, fitted[rows])
    return fitted


def _check(dense: Tensor, pruned: Tensor, hessian: Tensor, damp: float) -> None:
    width = pruned.shape[-1]
    if dense.shape != pruned.shape or pruned.dim() != 2:
        raise UsageError(
            f"a refit takes two matrices of one shape, got {list(dense.shape)} and "
            f"{list(pruned.shape)}"
        )
    if tuple(hessian.shape) != (width, width):
        raise UsageError(
            f"{width} inputs need a Hessian of {width}x{width}, got "
            f"{list(hessian.shape)}"
        )
    if not damp >= 0:
        raise UsageError(f"damp {damp} is below 0")
    if not all(bool(torch.isfinite(x).all()) for x in (dense, pruned, hessian)):
        raise NonFiniteError("a weight or the Hessian of the inputs is not finite")


def _by_factors(
    dense: Tensor, start: Tensor, support: Tensor, hessian: Tensor, damping: float
) -> Tensor:
    """Solve each row by a Cholesky factor; shorter ones are filled with the identity.

    A row whose H_SS is singular stays at ``start``.
    """
    size = int(support.sum(1).max())
    # The places of the kept weights come first, in their order.
    places = (~support).to(torch.int8).argsort(dim=1, stable=True)[:, :size]
    real = support.gather(1, places)
    matrix = hessian[places[:, :, None], places[:, None, :]].double()
    matrix *= (real[:, :, None] & real[:, None, :]).double()
    matrix.diagonal(dim1=1, dim2=2).add_((~real).double() + damping * real)
    aim = (times(dense, hessian).gather(1, places) * real)[..., None]
    factor, failed = torch.linalg.cholesky_ex(matrix)
    solved = torch.cholesky_solve(aim, factor)[..., 0]
    new = start.scatter(1, places, solved * real)
    return torch.where((failed == 0)[:, None], new, start)


def _by_gradients(
    dense: Tensor, start: Tensor, support: Tensor, hessian: Tensor, damping: float
) -> Tensor:
    """Solve all rows together by preconditioned conjugate gradients, from ``start``."""
    scale = hessian.diagonal().double() + damping
    found, dense = start * support, dense.double()
    aim = _norm(times(dense, hessian) * support, scale)
    for _ in range(ROUNDS):
        rest = dense - found  # weights that are kept and never seen do not matter
        left = (times(rest, hessian) - damping * found) * support
        if bool((_norm(left, scale) <= TOLERANCE * aim).all()):
            return found
        step = _conjugate_gradients(
            left.to(hessian.dtype), support, hessian, damping, scale.to(hessian.dtype)
        )
        found += step.double()
    log.info("a refit stopped before a residual of %g of the aim", TOLERANCE)
    return found


def _conjugate_gradients(
    left: Tensor, support: Tensor, hessian: Tensor, damping: float, scale: Tensor
) -> Tensor:
    """Solve for the residuals ``left``, ``[rows, in]``, to 1 % or as far as it goes."""
    found = torch.zeros_like(left)
    ready = left / scale
    direction = ready.clone()
    size = first = (left * ready).sum(1, keepdim=True)
    for _ in range(STEPS):
        product = ((direction @ hessian) + damping * direction) * support
        curvature = (direction * product).sum(1, keepdim=True)
        length = torch.where(curvature > 0, size / curvature, 0)
        found += length * direction
        left = left - length * product
        ready = left / scale
        new = (left * ready).sum(1, keepdim=True)
        if bool((new <= 1e-4 * first).all()):
            break
        direction = ready + torch.where(size > 0, new / size, 0) * direction
        size = new
    return found


def _norm(rows: Tensor, scale: Tensor) -> Tensor:
    return (rows.square() / scale).sum(1).sqrt()


def times(rows: Tensor, hessian: Tensor) -> Tensor:
    """The product of ``rows`` and a Hessian in fp64, few of its columns at a time."""
    rows = rows.double()
    return torch.cat([rows @ columns.double() for columns in _columns(hessian)], 1)


def energies(rows: Tensor, hessian: Tensor) -> Tensor:
    """w^T H w of each of ``rows``, ``[out, in]``, in fp64: ``[out]``."""
    count = max(1, MEMORY // (8 * max(1, rows.shape[1])))
    return torch.cat(
        [
            (times(part, hessian) * part.double()).sum(1).clamp(min=0)
            for part in torch.split(rows, count)
        ]
    )


def as_stored(fitted: Tensor, pruned: Tensor, dtype: torch.dtype) -> Tensor:
    """Round to what is stored; the mask stays that of ``pruned``.

    A kept weight that would become zero gets the smallest normal number of its sign.
    """
    new = fitted.to(dtype)
    vanished = (new == 0) & (pruned != 0)
    if bool(vanished.any()):
        least = torch.finfo(dtype).smallest_normal
        sign = torch.where(fitted < 0, -1.0, 1.0)
        new = torch.where(vanished, (least * sign).to(dtype), new)
    return torch.where(pruned != 0, new, pruned.to(dtype))


def _columns(hessian: Tensor) -> Iterator[Tensor]:
    count = max(1, MEMORY // (8 * max(1, len(hessian))))
    yield from torch.split(hessian, count, dim=1)
