"""By what weights are known again, so that ``--resume`` refuses others.

Those of the teacher of a run, and those that a run began with: runs of a comparison are
to begin alike, also those that are begun later.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from step_cli.errors import InputError
from step_cli.formats.files.json_text import read_json
from step_cli.training.records import save_text

TEACHER, START = "teacher.json", "start.json"
LARGEST = 1 << 16  # bytes of a file
SAMPLED = 256  # numbers of each tensor in the digest
BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}


def digest_of(state: Mapping[str, Tensor]) -> str:
    """A digest of weights that any change of one number changes.

    Of each tensor: name, type, shape, numbers at even distances, and the exact sum of
    all its numbers taken as integers, which is quicker than hashing them.
    """
    digest = hashlib.sha256()
    for name, value in state.items():
        flat = value.detach().cpu().contiguous().flatten()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        bits = flat.view(BITS.get(value.dtype.itemsize, torch.int64))
        digest.update(f"{int(bits.sum(dtype=torch.int64))}\n".encode())
        every = max(1, len(bits) // SAMPLED)
        digest.update(bits[::every].contiguous().numpy().tobytes())
    return digest.hexdigest()


def digest_of_files(files: Sequence[Path]) -> str:
    """A digest of all bytes of an ONNX graph and of its data."""
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def record_digest(run_dir: Path, file: str, sha256: str) -> None:
    """Record by what weights are known again: in ``START`` or ``TEACHER``."""
    document = {"schema": f"step-cli/{Path(file).stem}/1", "sha256": sha256}
    save_text(run_dir / file, json.dumps(document, indent=2) + "\n")


def refuse_other_teacher(run_dir: Path, teacher: Path, sha256: str) -> None:
    """Refuse to go on with another teacher than the run began with.

    Args:
        run_dir: Of the run.
        teacher: Where the teacher is, for the message.
        sha256: Of the teacher as it is now.

    Raises:
        InputError: It is another, or there is no record.
    """
    begun: dict[str, Any] = read_json(
        run_dir / TEACHER, "a record of the teacher", limit_bytes=LARGEST
    )
    if begun.get("sha256") != sha256:
        raise InputError(
            f"not the teacher the run began with: the weights of {teacher} are others "
            "than they were; it would not go on bit for bit",
            file=run_dir,
        )


def digest_of_start(model: nn.Module) -> str:
    """A digest of all parameters of a model that no step has changed yet."""
    return digest_of(dict(model.named_parameters()))


def refuse_other_start(run_dir: Path, sha256: str) -> None:
    """Refuse to begin a run beside one of the same seed that began otherwise.

    Args:
        run_dir: Of the run that was begun.
        sha256: Of the weights with which a run of its seed would begin now.

    Raises:
        InputError: They are others, or there is no record.
    """
    begun = read_json(
        run_dir / START, "a record of the first weights", limit_bytes=LARGEST
    )
    if begun.get("sha256") != sha256:
        raise InputError(
            "began with other weights than runs of its seed would begin with now, so "
            "they cannot be compared: the model or model.weights has changed; restore "
            "it, or compare in another directory",
            file=run_dir,
        )
