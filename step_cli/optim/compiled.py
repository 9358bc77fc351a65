"""What is compiled where a compiler exists, and the frozen-variance update.

The update differs from `adam.py` by rounding, about 1e-7. Functions are compiled once
for all sizes. The first call takes seconds, so it pays from tens of millions of weights
on.
"""

import functools
import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

logger = logging.getLogger(__name__)


@functools.cache
def can_compile(device: str = "cpu") -> bool:
    """Whether ``torch.compile`` works on a kind of device; tried once, and said if not.

    Args:
        device: ``cpu`` or ``cuda``.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own, when it is first imported
            torch.compile(_double, dynamic=True)(torch.ones(8, device=device))
    except Exception as error:  # a missing compiler raises of every kind
        kind = type(error).__name__
        logger.info("no compiled kernels here (%s), going on without", kind)
        return False
    return True


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` compiled once, for tensors of all sizes."""
    made: Callable[..., Any] = torch.compile(function, dynamic=True)
    return made


def compiled_frozen_step(
    weight: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    variance: Tensor,
    scalars: dict[str, Tensor],
) -> None:
    """Adam's step under a frozen variance, eps outside the root; in place.

    Args:
        weight: Dense weights, fp32, contiguous.
        grad: Like ``weight``.
        exp_avg: First moment m.
        variance: Second moment v, only read.
        scalars: From :func:`step_scalars`; tensors, so that no value is compiled in.
    """
    flat = (x.view(-1) for x in (weight, grad, exp_avg, variance))
    compiled(_frozen_step)(*flat, **scalars)


def step_scalars(
    *,
    lr: float,
    weight_decay: float,
    beta1: float,
    eps: float,
    step: float | Tensor,
    v_correction: float | Tensor,
    like: Tensor,
) -> dict[str, Tensor]:
    """What :func:`compiled_frozen_step` multiplies by.

    Args:
        lr: Learning rate.
        weight_decay: Decoupled decay.
        beta1: Of the first moment.
        eps: Added to the root.
        step: t, from 1, which corrects the first moment.
        v_correction: What the variance is divided by, 1 - beta2^t0, or 1.
        like: Weights, for dtype and device.
    """
    values = {
        "decay": 1 - lr * weight_decay,
        "step_size": lr / (1 - beta1**step),
        "one_minus_beta1": 1 - beta1,
        "v_factor": 1 / v_correction,
        "eps": eps,
    }
    return {
        key: torch.as_tensor(value, dtype=like.dtype, device=like.device)
        for key, value in values.items()
    }


def _double(values: Tensor) -> Tensor:
    return values * 2


def _frozen_step(
    weight: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    variance: Tensor,
    *,
    decay: Tensor,
    step_size: Tensor,
    one_minus_beta1: Tensor,
    v_factor: Tensor,
    eps: Tensor,
) -> None:
    exp_avg.lerp_(grad, one_minus_beta1)
    # A coordinate that has never seen a gradient stays where it is (see adam.py).
    v_hat = torch.where(variance == 0, torch.inf, variance * v_factor)
    weight.copy_(weight * decay - step_size * exp_avg / (v_hat.sqrt() + eps))
