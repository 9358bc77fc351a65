"""What this process holds of a run: tensors by name, to be saved and put back.

Under DDP all hold the same model and optimizer, which the first process saves; under
FSDP each holds a share, and saves that.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from step_cli.formats.files.staged import flush
from step_cli.formats.open import open_file
from step_cli.formats.pytorch.arrays import to_array, to_tensor
from step_cli.formats.safetensors.writer import save_safetensors
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.optim.shards import local, split_like
from step_cli.optim.state import with_index
from step_cli.training.distributed import World
from step_cli.training.random_state import random_states, restore_random_states

KINDS = ("model", "optimizer", "random")


def files_of(world: World, rank: int) -> dict[str, str]:
    """The files of one process in a checkpoint."""
    mark = f"-{rank:05d}" if world.size > 1 else ""
    return {kind: f"{kind}{mark}.safetensors" for kind in KINDS}


def write_own(
    folder: Path, model: nn.Module, states: dict[int, dict[str, Any]], world: World
) -> list[str]:
    """Write what this process alone knows, down to the disk.

    Args:
        folder: Where to.
        model: As wrapped.
        states: Of the optimizer's ``state_dict``.
        world: The processes.

    Returns:
        The names of the files.
    """
    tensors = {"random": random_states(world.device)}
    if world.first or world.kind == "fsdp":
        tensors["model"] = {k: local(v) for k, v in model.state_dict().items()}
        tensors["optimizer"] = {
            f"{index}.{key}": local(value)
            for index, state in states.items()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }
    else:  # statistics of batches differ
        tensors["model"] = dict(_saved_buffers(model))
    files = files_of(world, world.rank)
    for kind, named in tensors.items():
        arrays = {name: to_array(value) for name, value in named.items()}
        save_safetensors(folder / files[kind], arrays)
        flush(folder / files[kind])
    return [files[kind] for kind in tensors]


def read_own(
    folder: Path,
    model: nn.Module,
    optimizer: SparseOptimizer,
    world: World,
    param_groups: list[dict[str, Any]],
) -> None:
    """Put back what :func:`write_own` of this process, or of the first, wrote."""
    own = files_of(world, world.rank)
    shared = own if world.kind == "fsdp" else files_of(world, 0)
    values = _read(folder, dict.fromkeys((shared["model"], own["model"])))
    present = model.state_dict()
    model.load_state_dict({k: split_like(v, present[k]) for k, v in values.items()})
    saved = _read(folder, [shared["optimizer"]])
    states: dict[int, dict[str, Any]] = {}
    for p, index in with_index(optimizer, param_groups):
        prefix = f"{index}."
        states[index] = {
            name.removeprefix(prefix): _split_as(value, p)
            for name, value in saved.items()
            if name.startswith(prefix)
        }
    optimizer.load_state_dict({"state": states, "param_groups": param_groups})
    restore_random_states(_read(folder, [own["random"]]), world.device)


def read_by(world: World) -> set[str]:
    """The names of the files that this process reads."""
    own = files_of(world, world.rank)
    if world.first or world.kind == "fsdp":
        return set(own.values())
    return {*own.values(), *files_of(world, 0).values()} - {own["optimizer"]}


def _read(folder: Path, names: Iterable[str]) -> dict[str, Tensor]:
    files = [open_file(folder / name) for name in names]
    return {t.name: to_tensor(t.read()) for file in files for t in file.tensors}


def _split_as(value: Tensor, p: Tensor) -> Tensor:
    """A part of the state as the optimizer holds it: split if it is one of weights."""
    whole = value.dim() and value.shape == local(p).shape
    return split_like(value, p) if whole else value


def _saved_buffers(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    saved = model.state_dict().keys()
    return ((name, b) for name, b in model.named_buffers() if name in saved)
