"""Training checkpoints: all that a run needs to go on bit for bit.

``checkpoints/step-NNNNNNNN/`` holds the model, the optimizer's tensors and the random
states, of each process its own, and, written last, ``state.json`` with the scalars and
the SHA-256 of every file. A folder appears complete or not at all; one without its
``state.json`` is passed over. No pickle is involved.
"""

import json
import logging
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from step_cli.errors import InputError, NonFiniteError, OutputError
from step_cli.formats.files.json_text import read_json
from step_cli.formats.files.mapped_file import reason_of, sha256
from step_cli.formats.files.staged import repair, staged
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.optim.shards import local
from step_cli.render.status_line import working_on
from step_cli.training.distributed import Processes
from step_cli.training.process_state import (
    files_read_by,
    load_process_state,
    save_process_state,
)

SCHEMA = "step-cli/training-state/1"
STATE_LIMIT = 64 << 20  # bytes of state.json
logger = logging.getLogger(__name__)


@working_on("saving a checkpoint")
def save_checkpoint(
    run_dir: Path,
    model: nn.Module,
    optimizer: SparseOptimizer,
    processes: Processes,
    *,
    keep: int,
) -> None:
    """Save everything, then delete all but the newest ``keep``.

    Raises:
        OutputError: The system refuses; then the older ones are all still there.
        NonFiniteError: A weight is not finite: nobody could go on from it.
    """
    _refuse_not_finite(model, optimizer)
    target = run_dir / "checkpoints" / f"step-{optimizer.steps_taken:08d}"
    saved = optimizer.state_dict()
    size_bytes = sum(
        part.numel() * part.element_size()
        for value in (*model.state_dict().values(), *_tensors_of(saved["state"]))
        for part in [local(value)]
    )
    size_bytes *= processes.size if processes.kind == "fsdp" else 1
    with _staged_together(target, processes, size_bytes) as staging:
        names = save_process_state(staging, model, saved["state"], processes)
        digests = processes.gathered({name: sha256(staging / name) for name in names})
        if processes.first:
            state = {
                "schema": SCHEMA,
                "step": optimizer.steps_taken,
                "torch": torch.__version__,
                "parallel": processes.kind,
                "world_size": processes.size,
                "param_groups": saved["param_groups"],
                "sha256": {k: v for of_one in digests for k, v in of_one.items()},
            }
            (staging / "state.json").write_text(json.dumps(state), encoding="utf-8")
    if processes.first:
        kept = _complete(run_dir)[-keep:]
        for old in target.parent.glob("step-*"):
            if old < kept[0]:
                (old / "state.json").unlink(missing_ok=True)  # incomplete from here on
                shutil.rmtree(old)


@working_on("reading the last checkpoint")
def load_checkpoint(
    run_dir: Path, model: nn.Module, optimizer: SparseOptimizer, processes: Processes
) -> int:
    """Continue from the newest complete checkpoint.

    Returns:
        The step it was saved after.

    Raises:
        InputError: There is none, it was changed, or another torch or another number
            of processes wrote it.
    """
    if processes.first:
        _clear_up(run_dir)
    path = processes.from_first(_newest(run_dir) if processes.first else run_dir)
    state = _read_state(path, processes)
    load_process_state(path, model, optimizer, processes, state["param_groups"])
    return int(state["step"])


def _clear_up(run_dir: Path) -> None:
    """Remove what a trainer that died while saving has left; no other is here now."""
    folder = run_dir / "checkpoints"
    left = [
        re.match(r"\.(step-[0-9]{8})\.", path.name) for path in folder.glob(".step-*")
    ]
    for name in {match[1] for match in left if match}:
        repair(folder / name)
        (folder / f".{name}.lock").unlink(missing_ok=True)


def has_checkpoint(run_dir: Path) -> bool:
    """Whether there is anything to resume from."""
    return bool(_complete(run_dir))


def newest_step(run_dir: Path) -> int:
    """The step of the newest complete checkpoint; 0 without one."""
    found = _complete(run_dir)
    return int(found[-1].name.removeprefix("step-")) if found else 0


def _complete(run_dir: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    folders = (run_dir / "checkpoints").glob("step-*")
    named = [path for path in folders if re.fullmatch(r"step-[0-9]{8}", path.name)]
    return sorted(path for path in named if (path / "state.json").is_file())


def _newest(run_dir: Path) -> Path:
    found = _complete(run_dir)
    if not found:
        raise InputError("nothing to resume: no complete checkpoint", file=run_dir)
    for torn in sorted((run_dir / "checkpoints").glob("step-*")):
        if torn > found[-1]:
            said = "%s is incomplete, going on from %s"
            logger.warning(said, torn.name, found[-1].name)
    return found[-1]


def _refuse_not_finite(model: nn.Module, optimizer: SparseOptimizer) -> None:
    states = optimizer.state
    for name, weight in model.named_parameters():
        held = [weight, *_tensors_of({0: states[weight]} if weight in states else {})]
        if not all(bool(local(value).isfinite().all()) for value in held):
            raise NonFiniteError(
                f"step {optimizer.steps_taken}: {name} is not finite, after a gradient "
                "that was not; lower the learning rate or clip the gradient"
            )


def _tensors_of(states: dict[int, dict[str, Any]]) -> Iterator[Tensor]:
    for state in states.values():
        yield from (value for value in state.values() if isinstance(value, Tensor))


@contextmanager
def _staged_together(
    target: Path, processes: Processes, size_bytes: int
) -> Iterator[Path]:
    """Stage a directory that all processes write to; the first publishes it."""
    try:
        if not processes.first:
            yield processes.from_first(target)
            return
        target.parent.mkdir(exist_ok=True)
        with staged(
            target, force=True, directory=True, size_bytes=size_bytes
        ) as staging:
            yield processes.from_first(staging)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else target
        raise OutputError(reason_of(error), file=where) from error


def _read_state(path: Path, processes: Processes) -> dict[str, Any]:
    file = path / "state.json"
    state = read_json(file, "a training state", limit_bytes=STATE_LIMIT)
    if state.get("schema") != SCHEMA:
        raise InputError(f"is not of schema {SCHEMA}: another step-cli", file=file)
    ours = {
        "torch": torch.__version__,
        "parallel": processes.kind,
        "world_size": processes.size,
    }
    differ = [
        f"{key} is {value}, was {state.get(key)}"
        for key, value in ours.items()
        if value != state.get(key)
    ]
    if differ:
        raise InputError(
            f"{'; '.join(differ)}: the run would not go on bit for bit", file=path
        )
    for name in sorted(files_read_by(processes)):
        _check_digest(path / name, state["sha256"].get(name))
    return state


def _check_digest(file: Path, digest: object) -> None:
    try:
        changed = sha256(file) != digest
    except OSError as error:
        raise InputError(reason_of(error), file=file) from None
    if changed:
        raise InputError("sha256 differs from when it was saved", file=file)
