"""What this process holds of a run, to be saved and put back: tensors, random states.

Under DDP all hold the same model and optimizer, which the first process saves; under
FSDP each holds a share, and saves that.
"""

import random
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from step_cli.formats.files.staged import flush
from step_cli.formats.open import open_file
from step_cli.formats.pytorch.arrays import to_array, to_tensor
from step_cli.formats.safetensors.writer import save_safetensors
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.optim.shards import local, split_like
from step_cli.optim.state import with_index
from step_cli.training.distributed import Processes

KINDS = ("model", "optimizer", "random")


def files_of(processes: Processes, rank: int) -> dict[str, str]:
    """The files of one process in a checkpoint."""
    mark = f"-{rank:05d}" if processes.size > 1 else ""
    return {kind: f"{kind}{mark}.safetensors" for kind in KINDS}


def save_process_state(
    folder: Path,
    model: nn.Module,
    states: dict[int, dict[str, Any]],
    processes: Processes,
) -> list[str]:
    """Write what this process alone knows, down to the disk.

    Args:
        folder: Where to.
        model: As wrapped.
        states: Of the optimizer's ``state_dict``.
        processes: The processes.

    Returns:
        The names of the files.
    """
    tensors = {"random": random_states(processes.device)}
    if processes.first or processes.kind == "fsdp":
        tensors["model"] = {k: local(v) for k, v in model.state_dict().items()}
        tensors["optimizer"] = {
            f"{index}.{key}": local(value)
            for index, state in states.items()
            for key, value in state.items()
            if isinstance(value, Tensor)
        }
    else:  # statistics of batches differ
        tensors["model"] = dict(_saved_buffers(model))
    files = files_of(processes, processes.rank)
    for kind, named in tensors.items():
        arrays = {name: to_array(value) for name, value in named.items()}
        save_safetensors(folder / files[kind], arrays)
        flush(folder / files[kind])
    return [files[kind] for kind in tensors]


def load_process_state(
    folder: Path,
    model: nn.Module,
    optimizer: SparseOptimizer,
    processes: Processes,
    param_groups: list[dict[str, Any]],
) -> None:
    """Put back what this process, or the first, saved."""
    own = files_of(processes, processes.rank)
    shared = own if processes.kind == "fsdp" else files_of(processes, 0)
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
    restore_random_states(_read(folder, [own["random"]]), processes.device)


def files_read_by(processes: Processes) -> set[str]:
    """The names of the files that this process reads."""
    own = files_of(processes, processes.rank)
    if processes.first or processes.kind == "fsdp":
        return set(own.values())
    return {*own.values(), *files_of(processes, 0).values()} - {own["optimizer"]}


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


def seed_all(seed: int, rank: int = 0) -> None:
    """Seed every generator; each process gets numbers of its own."""
    if rank:
        seed = int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators, on the host and on ``device``, and of others."""
    _, numbers, gauss = random.getstate()
    _, keys, *rest = np.random.get_state(legacy=True)
    states = {
        "cpu": torch.get_rng_state(),
        "python": torch.tensor(numbers),
        "python-gauss": torch.tensor(
            [float("nan") if gauss is None else gauss], dtype=torch.float64
        ),
        "numpy": torch.from_numpy(np.asarray(keys, np.int64)),
        "numpy-rest": torch.tensor(rest, dtype=torch.float64),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Go on with the states of :func:`random_states`."""
    torch.set_rng_state(states["cpu"])
    gauss = float(states["python-gauss"])
    numbers = tuple(states["python"].tolist())
    random.setstate((3, numbers, None if gauss != gauss else gauss))
    place, has_gauss, cached = states["numpy-rest"].tolist()
    keys = states["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(place), int(has_gauss), cached))
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
