"""What the two ranks do; the tests judge what they return."""

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from integration.training import (
    Batch,
    batches,
    build_blocks,
    build_model,
    by_autoswitch,
    dense_weights,
    loss_of,
    optimizer_of,
    train,
    weights,
)
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import Shard
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel

from step_cli.errors import NonFiniteError, NotSparseError, UsageError
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.optim.require_sparse import require_sparse
from step_cli.optim.watch import MEETINGS
from step_cli.recipes.sparse_adamw import sparse_adamw

BLOCKS = ("t-sr-ste", "bi-mask")  # their masks look along both axes


def sharded_model(seed: int = 0, dtype: torch.dtype = torch.float32) -> nn.Sequential:
    return sharded(build_model(seed, dtype), (dist.get_world_size(),))


def sharded(model: nn.Sequential, shape: tuple[int, ...]) -> nn.Sequential:
    names = ("replicas", "shards")[-len(shape) :]
    mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def wrapped_model(kind: str, *, blocks: bool = False) -> nn.Module:
    model = build_blocks() if blocks else build_model()
    if kind == "ddp":
        return DistributedDataParallel(model)
    return sharded(model, {"fsdp2": (2,), "hsdp": (2, 1)}[kind])


def my_half(data: list[Batch]) -> list[Batch]:
    mine = slice(dist.get_rank(), None, dist.get_world_size())
    return [(inputs[mine], targets[mine]) for inputs, targets in data]


def outcome(model: nn.Module, optimizer: SparseOptimizer) -> dict[str, Any]:
    bare = model.module if isinstance(model, DistributedDataParallel) else model
    return {
        "weights": weights(bare),
        "dense": dense_weights(bare, optimizer),
        "switch": optimizer.switch_step,
        "sample": optimizer.variance_sample(),
        "layers": optimizer.layer_changes(),
    }


def train_on(kind: str, options: dict[str, Any], alike: bool, steps: int) -> Any:
    """Train with the same batches on both ranks, or each with half of them."""
    model = wrapped_model(kind, blocks=options.get("recipe") in BLOCKS)
    optimizer = optimizer_of(model, **options)
    data = batches(steps)
    train(model, optimizer, data if alike else my_half(data))
    return outcome(model, optimizer)


def wrapped_late(seeds: list[int]) -> Any:
    """Build the optimizer, then wrap: DDP overwrites all weights with rank 0's."""
    model = build_model(seeds[dist.get_rank()])
    optimizer = optimizer_of(model, recipe="ste")
    wrapped = DistributedDataParallel(model)
    try:
        train(wrapped, optimizer, batches(3))
    except UsageError as error:
        return error.message
    return outcome(model, optimizer)


def exchanged(recipe: str, steps_before: int) -> Any:
    """Shard under the optimizer, as accelerate does, and put the shards in its groups.

    Returns:
        What ``step`` says, and what ``adopt`` says or how training ends after it.
    """
    model = build_model()
    optimizer = optimizer_of(model, recipe=recipe, switch=3)
    train(model, optimizer, batches(steps_before))
    names = {p: name for name, p in model.named_parameters()}
    sharded(model, (2,))
    shards = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [shards[names[p]] for p in group["params"]]
    said = []
    for use in (optimizer.step, optimizer.adopt):
        try:
            use()
        except UsageError as error:
            said.append(error.message)
    if len(said) == 1:
        train(model, optimizer, batches(8))
    return said, outcome(model, optimizer) if len(said) == 1 else None


def communications(kind: str) -> list[int]:
    """How many collectives each optimizer step calls."""
    model = wrapped_model(kind)
    optimizer = optimizer_of(model, switch=by_autoswitch(3))
    counts = []
    for batch in batches(6):
        loss_of(model, batch).backward()
        with CommDebugMode() as watched:
            optimizer.step()
        optimizer.zero_grad()
        counts.append(watched.get_total_counts())
    return counts


def watched_step() -> tuple[float | None, float | None, list[float]]:
    model = sharded_model()
    optimizer = optimizer_of(model, recipe="ste")
    optimizer.watch_masks = True
    train(model, optimizer, batches(3))
    rates = optimizer.flip_rates() or {}
    return optimizer.flip_rate(), optimizer.pruned_update_share(), [*rates.values()]


def rows_as_groups(rows: int, dim: int) -> str | list[int]:
    """Shard a weight of ``rows`` x 16 along ``dim``; its groups run down the rows."""
    layer = nn.Linear(16, rows, bias=False)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    fully_shard(layer, mesh=mesh, shard_placement_fn=lambda p: Shard(dim))
    groups = [{"params": [layer.weight], "pattern": "2:4", "axis": 0}]
    try:
        sparse_adamw(groups, recipe="ste")
    except UsageError as error:
        return error.message
    kept: Tensor = layer.weight.detach().full_tensor() != 0  # type: ignore[operator]
    return kept.view(-1, 4, 16).sum(1).unique().tolist()


def resumed(cut: int, options: dict[str, Any], flat: bool, folder: Path) -> Any:
    """Train, save after ``cut`` steps, load into a fresh run, and train on."""
    dtype = options.pop("dtype", torch.float32)
    data = batches(8)
    model = sharded_model(dtype=dtype)
    optimizer = optimizer_of(model, switch=by_autoswitch(), **options)
    train(model, optimizer, data[:cut])
    save(model, optimizer, folder, flat=flat)
    train(model, optimizer, data[cut:])
    fresh = sharded_model(seed=7, dtype=dtype)
    fresh_optimizer = optimizer_of(fresh, switch=by_autoswitch(), **options)
    load(fresh, fresh_optimizer, folder, flat=flat)
    steps = fresh_optimizer.steps_taken
    train(fresh, fresh_optimizer, data[cut:])
    return outcome(model, optimizer), outcome(fresh, fresh_optimizer), steps


def resumed_frozen(recipe: str, flat: bool, folder: Path) -> Any:
    """As :func:`resumed`, of a model whose first layer is frozen, then wakes."""
    data = batches(8)
    runs = []
    for seed in (0, 7):
        model = sharded_model(seed)
        model[0].requires_grad_(False)
        runs.append((model, optimizer_of(model, recipe=recipe, switch=3)))
    (model, optimizer), fresh = runs
    train(model, optimizer, data[:5])
    before = weights(model)["0.weight"]
    save(model, optimizer, folder, flat=flat)
    load(*fresh, folder, flat=flat)
    kept = torch.equal(weights(fresh[0])["0.weight"], before)
    for each, its in runs:
        each[0].requires_grad_(True)
        for module in each.modules():  # FSDP has gathered parameters that it keeps
            if isinstance(module, FSDPModule):
                module.reshard()
        train(each, its, data[5:])
    moved = not torch.equal(weights(model)["0.weight"], before)
    return outcome(model, optimizer), outcome(*fresh), (kept, moved)


def required(broken_on: int | None) -> str:
    """What `require_sparse` says on this rank, where a shard was written on one."""
    model = wrapped_model("fsdp2")
    optimizer = optimizer_of(model, recipe="ste")
    train(model, optimizer, batches(2))
    if dist.get_rank() == broken_on:
        next(model.parameters()).to_local().data.fill_(1)  # type: ignore[attr-defined]
    try:
        require_sparse(model, optimizer)
    except NotSparseError as error:
        return error.message
    return "sparse"


def save(model: nn.Module, opt: SparseOptimizer, folder: Path, *, flat: bool) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    states = get_optimizer_state_dict(model, opt, options=options)
    dcp.save({"model": model.state_dict(), "optimizer": states}, checkpoint_id=folder)


def load(model: nn.Module, opt: SparseOptimizer, folder: Path, *, flat: bool) -> None:
    options = StateDictOptions(flatten_optimizer_state_dict=flat)
    states = get_optimizer_state_dict(model, opt, options=options)
    both = {"model": model.state_dict(), "optimizer": states}
    dcp.load(both, checkpoint_id=folder)
    model.load_state_dict(both["model"])
    set_optimizer_state_dict(model, opt, both["optimizer"], options=options)


def written_on_rank_0(kind: str) -> tuple[int, str]:
    """The step that raises, and what it says, after one process wrote to a weight."""
    model = wrapped_model(kind)
    optimizer = optimizer_of(model, recipe="ste")
    for number, batch in enumerate(batches(3 * MEETINGS)):
        loss_of(model, batch).backward()
        if number == 1 and dist.get_rank() == 0:
            shard = next(model.parameters()).to_local()  # type: ignore[attr-defined]
            shard.data.view(-1)[0].add_(1)
        try:
            optimizer.step()
        except UsageError as error:
            return number + 1, str(error)
        optimizer.zero_grad()
    return 0, "nothing"


def nan_on_rank_0(kind: str) -> tuple[int, str]:
    """The step that raises, and what it says, after NaN in one process's gradient."""
    model = wrapped_model(kind)
    optimizer = optimizer_of(model, recipe="ste")
    for number, batch in enumerate(batches(3 * MEETINGS)):
        loss_of(model, batch).backward()
        if number == 1:
            shard = next(model.parameters()).grad.to_local()  # type: ignore[union-attr]
            shard.view(-1)[0].mul_(torch.nan if dist.get_rank() == 0 else 1.0)
        try:
            optimizer.step()
        except NonFiniteError as error:
            return number + 1, str(error)
        optimizer.zero_grad()
    return 0, "nothing"
