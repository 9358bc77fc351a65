"""The dense weights an optimizer owns, beside or instead of the model's parameters.

A parameter of at least fp32 can be its own dense weight while nothing is pruned; one of
fewer bits never can, as its updates would be rounded away.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor


def is_master(p: Tensor) -> bool:
    """Whether a parameter is precise enough to be its own dense weight."""
    return p.dtype in (torch.float32, torch.float64)


def master_copy(p: Tensor) -> Tensor:
    """The parameter's values in at least fp32, in memory of their own."""
    return p.detach().clone() if is_master(p) else p.detach().float()


def shares_memory(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors of one shape are the same values."""
    return one.dtype == other.dtype and one.data_ptr() == other.data_ptr()


@contextmanager
def in_place_of_parameters(
    swaps: Sequence[tuple[Tensor, Tensor, Tensor | None]],
) -> Iterator[None]:
    """Let parameters be their dense weights, without a copy.

    Args:
        swaps: Parameter, dense weight, and the gradient in the dense weight's dtype.
    """
    kept = [(p, p.data, p.grad) for p, _, _ in swaps]
    for p, dense, grad in swaps:
        p.grad, p.data = None, dense  # a gradient must have its parameter's dtype
        p.grad = grad
    try:
        yield
    finally:
        for p, data, own_grad in kept:
            p.grad, p.data = None, data
            p.grad = own_grad
