"""An unfinished `prune` beside OUT: the blocks that are done, and of what they are.

``OUT.unfinished`` grows while a model is pruned by samples, and is gone once OUT is
there. After a kill ``--resume`` goes on from its last finished block. ``record.json``
says what the work began with; nothing else is gone on from.
"""

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from step_cli.config.commands import PruneConfig
from step_cli.errors import InputError, OutputError, StepError
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.files.finished import PART, FinishedParts
from step_cli.formats.files.json_text import read_json
from step_cli.formats.files.mapped_file import reason_of
from step_cli.formats.files.target import locked
from step_cli.formats.plan import digests
from step_cli.formats.pytorch.arrays import to_array
from step_cli.models.source import ModelSource
from step_cli.nm.pattern import Plan
from step_cli.oneshot.forward_pass import Batch

log = logging.getLogger(__name__)

RECORD = "record.json"
SCHEMA = "step-cli/unfinished-prune/1"
LIMIT = 1 << 24  # bytes of the record
# What may be another when work goes on; of the plan and the samples the content counts.
FREE = {"checkpoint", "out", "calibration", "plan", "resume", "force", "dry_run"}
WHAT = {
    "versions": "another version",
    "options": "another option",
    "checkpoint": "another CHECKPOINT",
    "model": "another model",
    "layers": "another choice of layers or patterns",
    "calibration": "other calibration samples",
}


def unfinished_path(out: Path) -> Path:
    """Where the work on OUT lies until it is finished."""
    final = Path(os.path.realpath(out))
    return final.with_name(f"{final.name}.unfinished")


def refuse_early(config: PruneConfig) -> None:
    """Refuse what can be refused before any file is read.

    Raises:
        InputError: There is nothing to resume.
        OutputError: Work was begun, and neither ``resume`` nor ``force`` is given; or
            what has the name of its folder is something else.
    """
    folder = unfinished_path(config.out)
    if os.path.lexists(folder) and not _is_ours(folder):
        raise OutputError(
            f"{folder} is in the way, which is not of a stopped prune; move it away",
            file=config.out,
        )
    begun = (folder / RECORD).exists()
    if config.resume and not begun:
        raise InputError(f"nothing to resume: there is no {folder}", file=config.out)
    if begun and not config.resume and not config.force:
        count = FinishedParts(folder).count
        raise OutputError(
            f"a stopped prune has left {count} finished block{'s' * (count != 1)} in "
            f"{folder}: --resume goes on from there, --force starts anew",
            file=config.out,
        )


def identity(
    config: PruneConfig,
    checkpoint: Checkpoint,
    source: ModelSource,
    layers: Plan,
    batches: Sequence[Batch],
) -> dict[str, Any]:
    """All that the result follows from, small enough to be written down.

    Args:
        config: The options.
        checkpoint: Whose files are read for their digests.
        source: What builds the model.
        layers: What is pruned, and how.
        batches: The samples as the model gets them.
    """
    options = json.loads(config.model_dump_json(exclude=FREE))
    code = Path(source.spec.partition(":")[0])
    model = code / "config.json" if code.is_dir() else code
    specs = {name: [str(spec.pattern), spec.axis] for name, spec in layers.items()}
    found: dict[str, Any] = {
        "versions": {"step-cli": version("step-cli"), "torch": torch.__version__},
        "options": options,
        "checkpoint": digests(checkpoint.files),
        "model": {
            "options": dict(source.options),
            "files": digests([model]) if model.is_file() else {},
        },
        "layers": _digest(json.dumps(specs, sort_keys=True).encode()),
        "calibration": _digest_of_batches(batches),
    }
    plain: dict[str, Any] = json.loads(json.dumps(found, default=str))
    return plain


@contextmanager
def unfinished(config: PruneConfig, of: Mapping[str, Any]) -> Iterator[FinishedParts]:
    """The folder of the work on OUT, held by this process; gone once the block ends.

    It stays where the block is stopped or killed, or the system refuses a write, if a
    block is finished. It goes where an error would come again.

    Args:
        config: The options.
        of: See `identity`.

    Raises:
        InputError: What was begun is not ``of`` this.
        OutputError: Another process works on it, or the system refuses a write.
    """
    folder = unfinished_path(config.out)
    try:
        with locked(folder, shown=config.out):
            if config.resume:
                _refuse_other(folder, of)
            else:
                _begin(folder, of)
            parts = FinishedParts(folder)
            if parts.count:
                log.info("going on after %d finished blocks", parts.count)
            try:
                yield parts
            except BaseException as error:
                again = isinstance(error, StepError) and not isinstance(
                    error, OutputError
                )
                if parts.count and not again:
                    log.info(
                        "%d finished blocks stay in %s: --resume goes on from there",
                        parts.count,
                        folder,
                    )
                else:
                    shutil.rmtree(folder, ignore_errors=True)
                raise
            shutil.rmtree(folder, ignore_errors=True)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else config.out
        raise OutputError(reason_of(error), file=where) from error


def _is_ours(folder: Path) -> bool:
    """Whether a folder may be removed: it holds nothing but what was put there here."""
    if folder.is_symlink() or not folder.is_dir():
        return False
    return all(path.name.startswith((RECORD, PART)) for path in folder.iterdir())


def _begin(folder: Path, of: Mapping[str, Any]) -> None:
    if folder.exists():
        log.info("%s is of a stopped prune and is replaced", folder)
        shutil.rmtree(folder)
    folder.mkdir()
    text = json.dumps({"schema": SCHEMA, **of}, indent=2) + "\n"
    beside = folder / f"{RECORD}.tmp"
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, folder / RECORD)


def _refuse_other(folder: Path, of: Mapping[str, Any]) -> None:
    path = folder / RECORD
    begun = read_json(path, "the record of a stopped prune", limit_bytes=LIMIT)
    if begun.get("schema") != SCHEMA:
        raise InputError(f"is no {SCHEMA}; start anew: --force, no --resume", file=path)
    for key, what in WHAT.items():
        if begun.get(key) != of[key]:
            raise InputError(
                f"cannot go on: {what} than the stopped prune had"
                f"{_difference(begun.get(key), of[key])}; start anew: --force, no "
                "--resume",
                file=folder,
            )


def _difference(then: Any, now: Any) -> str:
    """Which entries of two tables differ, where they are short enough to say."""
    if not isinstance(then, dict) or not isinstance(now, dict):
        return ""
    differ = [
        f"{key} is {now.get(key)!r}, was {then.get(key)!r}"
        for key in sorted(then.keys() | now.keys())
        if then.get(key) != now.get(key)
    ]
    text = "; ".join(differ)
    return f" ({text})" if len(text) <= 300 else ""


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _digest_of_batches(batches: Sequence[Batch]) -> str:
    total = hashlib.sha256()
    for batch in batches:
        for name, value in sorted(batch.items()):
            total.update(f"{name} {value.dtype} {list(value.shape)}".encode())
            total.update(to_array(value).tobytes())
    return total.hexdigest()
