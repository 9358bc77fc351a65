"""A model spread over processes by DDP or FSDP2, and compiled.

FSDP2 splits each block of the model by itself, so that only one is whole at a time, and
along an axis that cuts no group of M: then masks need no communication. Gradients are
clipped alike however they are split.
"""

import contextlib
import inspect
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from step_cli.errors import MissingError, UsageError
from step_cli.nm.pattern import Plan
from step_cli.optim.compiled import can_compile
from step_cli.optim.shards import is_shard, local, whole_axis
from step_cli.training.distributed import Processes

TINY = 1e-6  # added to a norm of gradients, as torch does
LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Statistics of batches are averaged when they are used, see `shared_buffers`.
_KNOWN = inspect.signature(DistributedDataParallel).parameters
_NEW = "forward_sync_buffers" in _KNOWN  # its name from torch 2.13 on
_NAME = "forward_sync_buffers" if _NEW else "broadcast_buffers"
_DDP: dict[str, Any] = {_NAME: False, "gradient_as_bucket_view": True}  # no copies


def parallelize(
    model: nn.Module, plan: Plan, processes: Processes, *, compile: bool
) -> nn.Module:
    """Put ``model`` on its device or devices.

    Args:
        model: Equal on all processes but for what is random; rank 0's weights hold.
        plan: Which groups of weights must not be cut.
        processes: The processes.
        compile: Compile forward and backward.

    Returns:
        What training steps call; under FSDP and alone that is ``model`` itself.

    Raises:
        UsageError: A weight cannot be split without cutting groups.
        MissingError: There is no compiler.
    """
    if compile and not can_compile():
        raise MissingError(
            "train.compile needs a C++ compiler, and torch.compile found none; "
            "install one, or leave it off"
        )
    if processes.kind == "fsdp":
        _shard(model, plan, processes, compile=compile)
        return model
    forward = model.to(processes.device)
    if processes.kind == "ddp":
        forward = DistributedDataParallel(model, **_DDP)
    if compile:
        forward.compile()
    return forward


def place_frozen(model: nn.Module, processes: Processes, *, compile: bool) -> None:
    """Put a model that is not trained where the one is that is; split under FSDP.

    Without gradients nothing is exchanged, so that DDP does not wrap it.

    Args:
        model: Equal on all processes.
        processes: The processes.
        compile: Compile its forward.
    """
    if processes.kind == "fsdp":
        _shard(model, {}, processes, compile=compile)
        return
    model.to(processes.device)
    if compile:
        model.compile()


def without_exchange(forward: nn.Module) -> AbstractContextManager[object]:
    """Where gradients are only added up, as those of another part are to come."""
    if isinstance(forward, DistributedDataParallel):
        return forward.no_sync()
    # FSDP exchanges those of each part: whole gradients are what it has no memory for.
    return contextlib.nullcontext()


@contextlib.contextmanager
def shared_buffers(model: nn.Module, processes: Processes) -> Iterator[None]:
    """Let batch normalization use the mean of what all processes have seen.

    Each keeps its own statistics otherwise, and has them again afterwards.
    """
    owned = {buffer: buffer.clone() for buffer in _statistics(model)}
    if processes.size > 1:
        for buffer in owned:
            processes.total(buffer).div_(processes.size)
    try:
        yield
    finally:
        for buffer, own in owned.items():
            buffer.copy_(own)


def whole_state(model: nn.Module, processes: Processes) -> dict[str, Tensor]:
    """The ``state_dict`` of a model, brought together on the host where it is split.

    All processes must call it, only the first gets it. Names of one weight share one
    tensor.
    """
    weights = dict(model.named_parameters(remove_duplicate=False))
    whole: dict[Tensor, Tensor] = {}
    state = {}
    for name, value in model.state_dict().items():
        key = weights.get(name, value)
        if key not in whole:
            whole[key] = value.full_tensor() if is_shard(value) else value
            whole[key] = whole[key].cpu() if processes.first else value
        state[name] = whole[key]
    return state if processes.first else {}


def _statistics(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._NormBase):
            for buffer in (module.running_mean, module.running_var):
                if buffer is not None:
                    yield buffer


def _shard(
    model: nn.Module, plan: Plan, processes: Processes, *, compile: bool
) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Shard

    for tensor in model.state_dict().values():
        dist.broadcast(tensor, src=0)
    axes = _axes(model, plan, processes.size)
    mesh = init_device_mesh(processes.device.type, (processes.size,))
    blocks = list(blocks_of(model))
    for module in [*blocks, model]:
        fully_shard(
            module,
            mesh=mesh,
            # The outermost too: else it keeps weights that the optimizer then changes.
            reshard_after_forward=True,
            shard_placement_fn=lambda p: Shard(axes[p]) if p in axes else None,
        )
    if compile:
        for block in blocks:
            block.compile()


def _axes(model: nn.Module, plan: Plan, processes: int) -> dict[Tensor, int]:
    """Along which axis each planned weight can be split."""
    axes: dict[Tensor, int] = {}
    for name, weight in model.named_parameters():
        if name not in plan:
            continue
        axis = whole_axis(tuple(weight.shape), plan[name], processes)
        if axis is None:
            raise UsageError(
                f"{name} of shape {tuple(weight.shape)} cannot be split over "
                f"{processes} processes without cutting groups of "
                f"M={plan[name].pattern.m}; use ddp, another number, or exclude it"
            )
        axes[weight] = axis
    return axes


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """The members of the outermost lists of modules, such as a transformer's layers.

    Members that share weights with other parts of the model are left to the whole.
    """
    owners: dict[Tensor, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        owners.setdefault(weight, []).append(name)

    def own(prefix: str, module: nn.Module) -> bool:
        weights = list(module.parameters())
        names = [name for weight in weights for name in owners[weight]]
        return bool(weights) and all(name.startswith(prefix) for name in names)

    def inside(module: nn.Module, prefix: str) -> Iterator[nn.Module]:
        for name, child in module.named_children():
            path = f"{prefix}{name}."
            callable_ = type(child).forward is not nn.Module.forward
            if isinstance(module, LISTS) and callable_:
                if own(path, child):
                    yield child
            else:
                yield from inside(child, path)

    return inside(model, "")


def clip_gradients(
    parameters: Iterable[nn.Parameter], max_norm: float, processes: Processes
) -> None:
    """Scale all gradients so that their norm is at most ``max_norm``, in place.

    As ``torch.nn.utils.clip_grad_norm_``, with the norm in fp64: sums of shares then
    round to the same factor as sums of whole gradients, so that FSDP trains what DDP
    and one process do, bit for bit.

    Args:
        parameters: Those without a gradient are left out.
        max_norm: Of all gradients together, L2.
        processes: The processes; with ``fsdp`` each holds a share of every gradient.
    """
    grads = [local(p.grad) for p in parameters if p.grad is not None]
    if not grads:
        return
    norms = [torch.linalg.vector_norm(grad, dtype=torch.float64) for grad in grads]
    squares = torch.stack(norms).square().sum()
    if processes.kind == "fsdp":
        squares = processes.total(squares)
    factor = (max_norm / (squares.sqrt() + TINY)).clamp(max=1.0).float()
    for grad in grads:
        grad.mul_(factor)
