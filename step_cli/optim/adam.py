"""Adam's update with the variance learned or frozen (STEP, Lu et al. 2023, Alg. 1).

Weight decay is decoupled (AdamW): inside the gradient it would contaminate v, which
STEP freezes and relies on. Tensors of one kind go through each operation together.
"""

import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from step_cli.errors import NonFiniteError, UsageError
from step_cli.optim.compiled import compiled_frozen_step, step_scalars
from step_cli.optim.shards import ShardSum
from step_cli.optim.weights import Weight

CHUNK = 1 << 17  # elements updated at a time on a CPU
LARGE_CHUNK = 1 << 24  # elsewhere, where each operation costs a launch

EpsMode = Literal["outside", "inside"]
Tensors = list[Tensor] | tuple[Tensor, ...]


def adam_directions(
    grads: Tensors,  # like the parameters
    exp_avgs: Tensors,  # first moments m, updated in place
    variances: Tensors,  # second moments v, updated in place unless frozen
    *,
    step: int,  # t, from 1
    variance_step: int | None,  # steps v has learned for; None: use the raw v
    betas: tuple[float, float],
    eps: float,
    eps_mode: EpsMode = "outside",
    learn_variance: bool = True,
) -> Tensors:
    """Return Adam's directions m_hat / (sqrt(v_hat) + eps), or / sqrt(v_hat + eps).

    ``eps_mode="inside"`` is the STEP paper's literal form, which floors the denominator
    at sqrt(eps). With eps outside, a coordinate whose frozen variance is zero has never
    seen a gradient: it is left where it is, as dividing by eps alone would throw it out
    by 1 / eps times its gradient.
    """
    beta1, beta2 = betas
    torch._foreach_lerp_(exp_avgs, grads, 1 - beta1)
    if learn_variance:
        torch._foreach_mul_(variances, beta2)
        torch._foreach_addcmul_(variances, grads, grads, value=1 - beta2)
    m_hat = torch._foreach_div(exp_avgs, 1 - beta1**step)
    correction = 1.0 if variance_step is None else 1 - beta2**variance_step
    denominators = torch._foreach_div(variances, correction)
    if eps_mode == "inside":
        torch._foreach_add_(denominators, eps)
        torch._foreach_sqrt_(denominators)
    else:
        if not learn_variance:  # 0 where the variance is 0
            torch._foreach_mul_(m_hat, torch._foreach_sign(variances))
        torch._foreach_sqrt_(denominators)
        torch._foreach_add_(denominators, eps)
    torch._foreach_div_(m_hat, denominators)
    return m_hat


def adam_step(
    weights: Sequence[Weight],
    groups: Sequence[dict[str, Any]],
    *,
    eps_mode: EpsMode,
    raw_variance: bool,
    learn_variance: bool,
    compiled: bool = False,
) -> None:
    """Update the dense weights of every parameter that has a gradient, in place.

    Args:
        weights: With gradients in ``dense.grad``, and state in the form of
            ``torch.optim.AdamW`` with a ``variance_step`` beside ``step``.
        groups: The optimizer's.
        eps_mode: See :func:`adam_directions`.
        raw_variance: Do not bias-correct the frozen variance.
        learn_variance: Update the variance too.
        compiled: Use the compiled kernel for the frozen update, where it fits.
    """
    alike: defaultdict[tuple[Any, ...], list[Weight]] = defaultdict(list)
    for w in weights:
        if w.dense.grad is not None:
            w.steps += 1
            learns = learn_variance or not w.frozen
            if learn_variance:
                w.variance_steps = w.steps
            learned = w.steps if learns else w.variance_steps
            corrected = None if raw_variance and not learns else learned
            fits = compiled and not learns and _fits_compiled(w, eps_mode)
            kind = w.dense.dtype, w.dense.device
            alike[w.group, learns, fits, w.steps, corrected, *kind].append(w)
    for (number, learns, fits, step, corrected, *_), some in alike.items():
        _count(some, learn_variance=learn_variance)
        group = groups[number]
        if fits:
            _compiled_update(some, group, step, corrected)
        else:
            _update(some, group, step, corrected, eps_mode, learn_variance=learns)


def freeze_variance(weights: Sequence[Weight], step: int) -> None:
    """From here on the variance of each weight is what it is now.

    Args:
        weights: All of them.
        step: The last step it has learned from.

    Raises:
        NonFiniteError: It is not finite.
        UsageError: It is zero everywhere.
    """
    seen = ShardSum(1)
    for w in weights:
        if "exp_avg_sq" in w.local_state:
            w.state["variance_step"].copy_(w.state["step"])
            seen.beside(w.param).add_(w.local_state["exp_avg_sq"].sum())
    whole = float(seen.total())
    if not math.isfinite(whole):
        raise NonFiniteError(f"step {step}: the gradient is not finite")
    if not whole:
        raise UsageError(
            f"the variance is zero at step {step}, and freezing it would divide by "
            "nothing; switch after a step that has gradients"
        )


def _fits_compiled(w: Weight, eps_mode: EpsMode) -> bool:
    return eps_mode == "outside" and not w.is_small and w.dense.is_contiguous()


def _count(weights: Sequence[Weight], *, learn_variance: bool) -> None:
    """Count the step in the state, from where it is saved."""
    steps = [w.state["step"] for w in weights]
    if steps[0].is_cpu:  # as torch's Adam does: a number is made a tensor every time
        torch._foreach_add_(steps, torch.tensor(1.0), alpha=1.0)
    else:
        torch._foreach_add_(steps, 1)
    if learn_variance:
        torch._foreach_copy_([w.state["variance_step"] for w in weights], steps)


def _update(
    weights: list[Weight],
    group: dict[str, Any],
    step: int,
    variance_step: int | None,
    eps_mode: EpsMode,
    *,
    learn_variance: bool,
) -> None:
    lr, decay = float(group["lr"]), group["weight_decay"]
    for dense, grads, exp_avgs, variances in _batches(weights):
        directions = adam_directions(
            grads,
            exp_avgs,
            variances,
            step=step,
            variance_step=variance_step,
            betas=group["betas"],
            eps=group["eps"],
            eps_mode=eps_mode,
            learn_variance=learn_variance,
        )
        torch._foreach_mul_(dense, 1 - lr * decay)
        torch._foreach_add_(dense, directions, alpha=-lr)


def _batches(weights: Sequence[Weight]) -> Iterator[list[Tensors]]:
    """Dense weights, gradients and moments in batches that stay in a cache.

    Large tensors are cut on a CPU, small ones taken together.
    """
    most = CHUNK if weights[0].dense.is_cpu else LARGE_CHUNK
    batch: list[tuple[Tensor, ...]] = []
    size = 0
    for w in weights:
        moments = w.local_state["exp_avg"], w.local_state["exp_avg_sq"]
        row = w.dense, w.given_grad, *moments
        pieces = [row]
        if w.dense.numel() > most and all(tensor.is_contiguous() for tensor in row):
            flat = (torch.split(tensor.view(-1), most) for tensor in row)
            pieces = list(zip(*flat, strict=True))
        for piece in pieces:
            batch.append(piece)
            size += piece[0].numel()
            if size >= most:
                yield list(zip(*batch, strict=True))
                batch, size = [], 0
    if batch:
        yield list(zip(*batch, strict=True))


def _compiled_update(
    weights: list[Weight], group: dict[str, Any], step: int, variance_step: int | None
) -> None:
    beta1, beta2 = group["betas"]
    scalars = step_scalars(
        lr=float(group["lr"]),
        weight_decay=group["weight_decay"],
        beta1=beta1,
        eps=group["eps"],
        step=step,
        v_correction=1.0 if variance_step is None else 1 - beta2**variance_step,
        like=weights[0].dense,
    )
    for w in weights:
        moments = w.local_state["exp_avg"], w.local_state["exp_avg_sq"]
        compiled_frozen_step(w.dense, w.given_grad.contiguous(), *moments, scalars)
