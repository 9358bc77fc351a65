"""Training checkpoints: all that a run needs to go on bit for bit.

``checkpoints/step-NNNNNNNN/`` holds the model, the optimizer's tensors and, written
last, ``state.json`` with the scalars and the SHA-256 of both. A folder appears complete
or not at all; one without its ``state.json`` is passed over. No pickle is involved.
"""

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from step_cli.core.optimizer import SparseOptimizer
from step_cli.errors import InputError
from step_cli.formats.digest import sha256
from step_cli.formats.json_text import read_json
from step_cli.formats.one_file import open_file
from step_cli.formats.safetensors_writer import save_safetensors
from step_cli.formats.staged import staged
from step_cli.formats.torch_arrays import to_array, to_tensor

SCHEMA = "step-cli/training-state/1"
STATE_LIMIT = 64 << 20  # bytes of state.json
FILES = ("model.safetensors", "optimizer.safetensors")
logger = logging.getLogger(__name__)


def save_checkpoint(
    run_dir: Path, model: nn.Module, optimizer: SparseOptimizer, *, keep: int
) -> None:
    """Save everything, then delete all but the newest ``keep``.

    Raises:
        OutputError: The system refuses; then the older ones are all still there.
    """
    folder = run_dir / "checkpoints"
    folder.mkdir(exist_ok=True)
    saved = optimizer.state_dict()
    model_tensors = {k: to_array(v) for k, v in model.state_dict().items()}
    tensors = {
        f"state.{index}.{key}": to_array(value)
        for index, state in saved["state"].items()
        for key, value in state.items()
        if isinstance(value, Tensor)
    }
    tensors |= {name: to_array(value) for name, value in _random_states().items()}
    target = folder / f"step-{optimizer.steps_taken:08d}"
    with staged(target, force=True, directory=True) as staging:
        save_safetensors(staging / FILES[0], model_tensors)
        save_safetensors(staging / FILES[1], tensors)
        state = {
            "schema": SCHEMA,
            "step": optimizer.steps_taken,
            "torch": torch.__version__,
            "param_groups": saved["param_groups"],
            "sha256": {name: sha256(staging / name) for name in FILES},
        }
        (staging / "state.json").write_text(json.dumps(state), encoding="utf-8")
    for old in _complete(run_dir)[:-keep]:
        shutil.rmtree(old)


def load_checkpoint(run_dir: Path, model: nn.Module, optimizer: SparseOptimizer) -> int:
    """Continue from the newest complete checkpoint.

    Returns:
        The step it was saved after.

    Raises:
        InputError: There is none, it was changed, or another torch wrote it.
    """
    found = _complete(run_dir)
    if not found:
        raise InputError("nothing to resume: no complete checkpoint", file=run_dir)
    path = found[-1]
    for torn in sorted((run_dir / "checkpoints").glob("step-*")):
        if torn > path:
            logger.warning("%s is incomplete, going on from %s", torn.name, path.name)
    state = _read_state(path)
    groups = state["param_groups"]
    values: dict[int, dict[str, Any]] = {}
    for tensor in open_file(path / FILES[1]).tensors:
        head, _, rest = tensor.name.partition(".")
        value = to_tensor(tensor.read())
        if head == "rng":
            _restore_random_state(rest, value)
            continue
        index, _, key = rest.partition(".")
        values.setdefault(int(index), {})[key] = value
    stored = open_file(path / FILES[0]).tensors
    model.load_state_dict({t.name: to_tensor(t.read()) for t in stored})
    optimizer.load_state_dict({"state": values, "param_groups": groups})
    return int(state["step"])


def has_checkpoint(run_dir: Path) -> bool:
    """Whether there is anything to resume from."""
    return bool(_complete(run_dir))


def _complete(run_dir: Path) -> list[Path]:
    """The complete checkpoints, oldest first."""
    folders = (run_dir / "checkpoints").glob("step-*")
    named = [path for path in folders if re.fullmatch(r"step-[0-9]{8}", path.name)]
    return sorted(path for path in named if (path / "state.json").is_file())


def _read_state(path: Path) -> dict[str, Any]:
    file = path / "state.json"
    state = read_json(file, "a training state", limit_bytes=STATE_LIMIT)
    if state.get("schema") != SCHEMA:
        raise InputError(f"is not of schema {SCHEMA}: another step-cli", file=file)
    for name, digest in state["sha256"].items():
        if sha256(path / name) != digest:
            raise InputError("sha256 differs from when it was saved", file=path / name)
    if state["torch"] != torch.__version__:
        raise InputError(
            f"was saved by torch {state['torch']}, this is {torch.__version__}; the "
            "run would not go on bit for bit",
            file=path,
        )
    return state


def _random_states() -> dict[str, Tensor]:
    states = {"rng.cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        for number, state in enumerate(torch.cuda.get_rng_state_all()):
            states[f"rng.cuda{number}"] = state
    return states


def _restore_random_state(device: str, state: Tensor) -> None:
    if device == "cpu":
        torch.set_rng_state(state)
    elif torch.cuda.is_available():
        torch.cuda.set_rng_state(state, int(device.removeprefix("cuda")))
