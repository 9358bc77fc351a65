"""Parameters that are split over processes, as FSDP2 splits them (``DTensor``).

Updates, masks and projections work on this process's shard without communication, as
no group of M is ever cut. Only sums over all coordinates are exchanged.
"""

import math
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeGuard

import torch
from torch import Tensor
from typing_extensions import override

from step_cli.errors import UsageError
from step_cli.nm.pattern import NMSpec

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def is_shard(tensor: Tensor) -> "TypeGuard[DTensor]":
    """Whether a tensor is split over processes."""
    # Importing the class takes a second, and where nobody did there is none of it.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)


def local(tensor: Tensor) -> Tensor:
    """This process's part, sharing memory with ``tensor``."""
    if not is_shard(tensor):
        return tensor
    with torch.no_grad():
        return tensor.to_local()


def local_grad(p: Tensor) -> Tensor | None:
    """The gradient of this process's part of a parameter."""
    grad = p.grad
    if grad is None:
        return None
    if is_shard(p) and is_shard(grad) and grad.placements != p.placements:
        grad = grad.redistribute(p.device_mesh, p.placements)
    return local(grad)


def split_like(part: Tensor, p: Tensor) -> Tensor:
    """This process's ``part`` of a tensor that is to be split as ``p`` is."""
    if not is_shard(p):
        return part
    return type(p).from_local(
        part,
        p.device_mesh,
        p.placements,
        run_check=False,
        shape=p.shape,
        stride=p.stride(),
    )


def version(p: Tensor) -> tuple[int, int]:
    """A number that changes whenever the values are written."""
    # An operation on a DTensor counts on the wrapper, one on its shard on the shard.
    return p._version, local(p)._version


def check_shards(p: Tensor, plan: NMSpec) -> None:
    """Refuse a split that would cut groups; the same answer on every process.

    Raises:
        UsageError: A process would hold a part of a group.
    """
    if not is_shard(p):
        return
    axis = plan.axis % p.dim()
    cuts = [
        p.device_mesh.size(i)
        for i, placement in enumerate(p.placements)
        if getattr(placement, "dim", None) == axis
    ]
    if not cuts:
        return
    size, processes, m = p.shape[axis], math.prod(cuts), plan.pattern.m
    whole = len(cuts) == 1 and _groups_stay_whole(size, processes, m)
    if not whole and size % (processes * m):
        other = "Shard(1)" if axis == 0 else "Shard(0)"
        raise UsageError(
            f"axis {axis} of shape {tuple(p.shape)} split over {processes} processes "
            f"cuts groups of M={m}; give fully_shard a "
            f"shard_placement_fn that returns {other} for it, or exclude the layer"
        )


def whole_axis(shape: tuple[int, ...], plan: NMSpec, processes: int) -> int | None:
    """Along which axis FSDP2 can split a weight so that no group is cut.

    Returns:
        The first that will do, mostly 0; None where there is none.
    """
    for axis, size in enumerate(shape):
        even = axis == 0 or size % processes == 0  # what FSDP2 asks of other axes
        own = axis == plan.axis % len(shape)
        if even and (not own or _groups_stay_whole(size, processes, plan.pattern.m)):
            return axis
    return None


def _groups_stay_whole(size: int, processes: int, m: int) -> bool:
    # Shards are of ceil(size / processes), the last may be smaller.
    return -(-size // processes) % m == 0


class Gathered(Mapping[str, Tensor]):
    """Whole weights by name, each brought together when it is asked for.

    All processes must ask for the same ones in the same order.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._weights = weights

    @override
    def __getitem__(self, name: str) -> Tensor:
        weight = self._weights[name].detach()
        return weight.full_tensor() if is_shard(weight) else weight

    @override
    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    @override
    def __len__(self) -> int:
        return len(self._weights)


class ShardSum:
    """A few sums over all coordinates, gathered where each parameter lies.

    Args:
        width: How many sums.
    """

    def __init__(self, width: int) -> None:
        self._width = width
        self._parts: dict[Any, Tensor] = {}

    def beside(self, p: Tensor) -> Tensor:
        """The sums, float64, to add what this process knows of ``p`` to."""
        shard = local(p)
        split = (p.device_mesh, p.placements) if is_shard(p) else None
        key = (shard.device, split)
        if key not in self._parts:
            zeros = torch.zeros(self._width, dtype=torch.float64, device=shard.device)
            self._parts[key] = zeros
        return self._parts[key]

    def total(self) -> Tensor:
        """The sums over all processes; one small all_reduce if anything is split."""
        parts = [_reduced(part, split) for (_, split), part in self._parts.items()]
        if not parts:
            return torch.zeros(self._width, dtype=torch.float64)
        return torch.stack([part.to(parts[0].device) for part in parts]).sum(0)


def shard_total(p: Tensor, sums: Tensor) -> Tensor:
    """Add up ``sums``, one-dimensional, over the processes that hold parts of ``p``."""
    total = ShardSum(len(sums))
    total.beside(p).add_(sums)
    return total.total()


def _reduced(part: Tensor, split: Any) -> Tensor:
    """Add up the parts of the processes among which parameters are split."""
    if split is None:
        return part
    from torch.distributed.tensor import DTensor, Partial, Replicate

    mesh, placements = split
    kinds = [Replicate() if kind.is_replicate() else Partial() for kind in placements]
    return DTensor.from_local(part, mesh, kinds, run_check=False).full_tensor()
