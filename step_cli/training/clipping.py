"""Clipping all gradients by their common norm, alike however they are split."""

from collections.abc import Iterable

import torch
from torch import nn

from step_cli.optim.shards import local
from step_cli.training.distributed import World

TINY = 1e-6  # added to the norm, as torch does


def clip_gradients(
    parameters: Iterable[nn.Parameter], max_norm: float, world: World
) -> None:
    """Scale all gradients so that their norm is at most ``max_norm``, in place.

    As ``torch.nn.utils.clip_grad_norm_``, with the norm in fp64: sums of shares then
    round to the same factor as sums of whole gradients, so that FSDP trains what DDP
    and one process do, bit for bit.

    Args:
        parameters: Those without a gradient are left out.
        max_norm: Of all gradients together, L2.
        world: The processes; with ``fsdp`` each holds a share of every gradient.
    """
    grads = [local(p.grad) for p in parameters if p.grad is not None]
    if not grads:
        return
    norms = [torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in grads]
    squares = torch.stack(norms).square().sum()
    if world.kind == "fsdp":
        squares = world.total(squares)
    factor = (max_norm / (squares.sqrt() + TINY)).clamp(max=1.0).float()
    for grad in grads:
        grad.mul_(factor)
