"""Adam's update with the variance learned or frozen (STEP, Lu et al. 2023, Alg. 1).

Weight decay is decoupled (AdamW): inside the gradient it would contaminate v, which
STEP freezes and relies on.
"""

from collections.abc import Collection
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from step_cli.optim.compiled import compiled_frozen_step, step_scalars

EpsMode = Literal["outside", "inside"]
Count = float | Tensor  # of steps


def adam_direction(
    grad: Tensor,  # like the parameter
    exp_avg: Tensor,  # first moment m, updated in place
    variance: Tensor,  # second moment v, updated in place unless frozen
    *,
    step: Count,  # t, from 1
    variance_step: Count | None,  # steps v has learned for; None: use the raw v
    betas: tuple[float, float],
    eps: float,
    eps_mode: EpsMode = "outside",
    learn_variance: bool = True,
) -> Tensor:
    """Return Adam's direction m_hat / (sqrt(v_hat) + eps), or / sqrt(v_hat + eps).

    ``eps_mode="inside"`` is the STEP paper's literal form, which floors the denominator
    at sqrt(eps). With eps outside, a coordinate whose frozen variance is zero has never
    seen a gradient: it is left where it is, as dividing by eps alone would throw it out
    by 1 / eps times its gradient.
    """
    beta1, beta2 = betas
    exp_avg.lerp_(grad, 1 - beta1)
    if learn_variance:
        variance.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    m_hat = exp_avg / (1 - beta1**step)
    v_hat = (
        variance / (1 - beta2**variance_step)
        if variance_step is not None
        else variance.clone()
    )
    if eps_mode == "inside":
        denominator = v_hat.add_(eps).sqrt_()
    else:
        if not learn_variance:
            m_hat.mul_(variance.sign())  # 0 where the variance is 0
        denominator = v_hat.sqrt_().add_(eps)
    return torch.div(m_hat, denominator, out=m_hat)


def adam_step(
    optimizer: Optimizer,
    *,
    eps_mode: EpsMode,
    raw_variance: bool,
    learn_variance: bool,
    late: Collection[Tensor] = (),
    compiled: bool = False,
) -> None:
    """Update every parameter that has a gradient, in place.

    Args:
        optimizer: Holds groups and state in the form of ``torch.optim.AdamW``, and a
            ``variance_step`` beside ``step``.
        eps_mode: See :func:`adam_direction`.
        raw_variance: Do not bias-correct the variance.
        learn_variance: Update the variance too.
        late: Parameters whose first gradient comes after the switch: there is nothing
            to freeze, so these learn their variance all along, as AdamW does.
        compiled: Use the compiled kernel for the frozen update, where it fits.
    """
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.grad is None:
                continue
            state = optimizer.state[p]
            state["step"] += 1
            if learn_variance:
                state["variance_step"].copy_(state["step"])
            learns = learn_variance or p in late
            if compiled and not learns and eps_mode == "outside" and p.is_contiguous():
                _compiled_step(p, state, group, raw_variance=raw_variance)
                continue
            learned = _count(state["step" if learns else "variance_step"])
            direction = adam_direction(
                p.grad,
                state["exp_avg"],
                state["exp_avg_sq"],
                step=_count(state["step"]),
                variance_step=None if raw_variance and not learns else learned,
                betas=group["betas"],
                eps=group["eps"],
                eps_mode=eps_mode,
                learn_variance=learns,
            )
            p.mul_(1 - float(group["lr"]) * group["weight_decay"])
            p.add_(direction, alpha=-float(group["lr"]))


def _compiled_step(
    p: Tensor, state: dict[str, Any], group: dict[str, Any], *, raw_variance: bool
) -> None:
    beta1, beta2 = group["betas"]
    learned = _count(state["variance_step"])
    scalars = step_scalars(
        lr=float(group["lr"]),
        weight_decay=group["weight_decay"],
        beta1=beta1,
        eps=group["eps"],
        step=_count(state["step"]),
        v_correction=1.0 if raw_variance else 1 - beta2**learned,
        like=p,
    )
    assert p.grad is not None
    grad = p.grad.contiguous()
    compiled_frozen_step(p, grad, state["exp_avg"], state["exp_avg_sq"], scalars)


def _count(steps: Tensor) -> Count:
    """Exact in double precision; reading it from a device would wait for the device."""
    return float(steps) if steps.device.type == "cpu" else steps.double()


def create_adam_state(state: dict[str, Any], p: Tensor, group: dict[str, Any]) -> None:
    """Create what ``torch.optim.AdamW`` would create at its first step, in fp32.

    Distributed checkpoints load by key, so the keys exist from the start.
    """
    dtype = p.dtype if p.dtype == torch.float64 else torch.float32
    on_device = group["capturable"] or group["fused"]
    device = p.device if on_device else torch.device("cpu")
    state["step"] = torch.zeros((), dtype=torch.float32, device=device)
    state["variance_step"] = torch.zeros_like(state["step"])
    for key in ("exp_avg", "exp_avg_sq"):
        state[key] = torch.zeros_like(
            p, dtype=dtype, memory_format=torch.preserve_format
        )
