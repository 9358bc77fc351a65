"""A run directory: one trainer at a time, and a run that goes on as it began."""

import contextlib
import json
import logging
import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from step_cli.config.document import PATHS
from step_cli.config.train import TrainConfig, keys_of, load_config
from step_cli.data.batch import Dataset, Subset, fingerprint_of
from step_cli.errors import InputError, OutputError, StoppedError, UsageError
from step_cli.formats.files.json_text import read_json
from step_cli.formats.files.mapped_file import reason_of
from step_cli.formats.files.target import checked_target, locked
from step_cli.training.checkpoints import has_checkpoint
from step_cli.training.records import save_text

logger = logging.getLogger(__name__)

DATA_FILE = "data.json"  # by what the data of the run are known
DATA_SCHEMA = "step-cli/data/1"
DATA_LIMIT = 1 << 20  # bytes of the file
SPLITS = {"train": "to train on", "held_out": "held out"}


@contextmanager
def run_directory(path: Path, *, force: bool) -> Iterator[Path]:
    """Make the directory of a new run, and keep other trainers out of it.

    The directory grows in place, so that a run can be followed and resumed. With
    ``force`` an old run stands aside meanwhile; it comes back if the new one fails, or
    if it dies before its first checkpoint: then as soon as another trainer comes.

    Raises:
        OutputError: It exists without ``force``, another trainer is in it, or the
            system refuses.
    """
    with _held(path, force=force) as final:
        aside = final.with_name(f".{final.name}.old-{os.getpid()}")
        if final.exists():
            os.rename(final, aside)
            logger.info("the old run is kept in %s until this one ends", aside)
        try:
            final.mkdir()
            yield final
        except BaseException as error:
            stopped = isinstance(error, StoppedError)
            began, done = _of_any(has_checkpoint, final), _of_any(is_finished, final)
            if not done and (not began or (aside.exists() and not stopped)):
                shutil.rmtree(final, ignore_errors=True)
                if aside.exists():
                    os.rename(aside, final)
            raise
        _forget_old_runs(final)


@contextmanager
def resumed_directory(path: Path) -> Iterator[Path]:
    """Go on in the directory of a run that was stopped.

    Raises:
        InputError: There is no such run.
        OutputError: Another trainer is in it, or the system refuses.
    """
    missing = InputError("nothing to resume: no such run directory", file=path)
    if not path.parent.is_dir():
        raise missing
    with _held(path, force=True) as final:
        if not final.is_dir():
            raise missing
        yield final
        _forget_old_runs(final)


def refuse_impossible(
    path: Path, *, force: bool, config: TrainConfig | None = None
) -> None:
    """Refuse to begin a run where none can be, before any work is done.

    Args:
        path: What is to become the run directory.
        force: Whether an old run may be replaced.
        config: Of the new one; what it reads must not lie in the old one.

    Raises:
        UsageError: The old run, which would be deleted, holds what is read.
        OutputError: It exists and ``force`` is not given, another trainer is in it, or
            no directory can be made there.
    """
    if not Path(os.path.realpath(path)).name:
        raise OutputError("is the root of all files; name a directory", file=path)
    above = next(parent for parent in path.absolute().parents if parent.exists())
    if not above.is_dir():
        raise OutputError(f"{above} is a file, and a directory is needed", file=path)
    if not os.access(above, os.W_OK | os.X_OK):
        raise OutputError(f"the directory {above} is not writable", file=path)
    if os.path.lexists(path) and not force:
        with _held(path, force=False):
            pass
    if config is not None and os.path.lexists(path):
        _refuse_loss(path, config)


def _refuse_loss(path: Path, config: TrainConfig) -> None:
    old = os.path.realpath(path)
    for section, key in PATHS:
        named = str(getattr(getattr(config, section), key))
        place = named.rpartition(":")[0] if ".py:" in named else named
        # What is relative is a name: of a sample, of built-in data, of a module.
        inside = Path(os.path.realpath(place)).is_relative_to(old)
        if os.path.isabs(place) and inside:
            raise UsageError(
                f"holds {section}.{key} {named}, which would be deleted with the old "
                "run; name another run directory",
                file=path,
            )


@contextmanager
def _held(path: Path, *, force: bool) -> Iterator[Path]:
    try:
        with _parents(path):
            real = Path(os.path.realpath(path))
            with locked(real, shown=path):
                _bring_back(real)
                yield checked_target(path, force=force, directory=True)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise OutputError(reason_of(error), file=where) from error


@contextmanager
def _parents(path: Path) -> Iterator[None]:
    """Make the directories above; if the block fails, remove those that are empty."""
    missing = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):  # another run is in it
            for parent in missing:
                parent.rmdir()
        raise


def is_finished(run_dir: Path) -> bool:
    """Whether the results are there; what shows them may still be on its way."""
    return (run_dir / "report.json").exists()


def _of_any(claim: Callable[[Path], bool], final: Path) -> bool:
    """Whether it holds of a run, or of one of the runs of a comparison."""
    inside = final.iterdir() if final.is_dir() else ()
    return claim(final) or any(claim(path) for path in inside if path.is_dir())


def _bring_back(final: Path) -> None:
    """Undo the replacing of a run by one that died with nothing to resume from."""
    old = _old_runs(final)
    if not old or _of_any(has_checkpoint, final) or _of_any(is_finished, final):
        return
    shutil.rmtree(final, ignore_errors=True)
    os.rename(old[-1], final)


def _forget_old_runs(final: Path) -> None:
    """What stood aside, also of trainers that died; nobody else holds the lock."""
    for old in _old_runs(final):
        shutil.rmtree(old, ignore_errors=True)


def _old_runs(final: Path) -> list[Path]:
    """What stands aside, the newest last."""
    name = re.compile(re.escape(f".{final.name}.old-") + "[0-9]+")
    found = [path for path in final.parent.iterdir() if name.fullmatch(path.name)]
    return sorted(found, key=lambda path: path.stat().st_ctime_ns)


def record_data(run_dir: Path, data: Dataset) -> None:
    """Record by what these data are known again: ``data.json``."""
    document = {"schema": DATA_SCHEMA, **fingerprint_of(data)}
    save_text(run_dir / DATA_FILE, json.dumps(document, indent=2) + "\n")


def refuse_other_data(run_dir: Path, data: Dataset) -> None:
    """Refuse to go on with other data than the run began with.

    Raises:
        InputError: They are others, or there is no record.
    """
    begun = read_json(run_dir / DATA_FILE, "a record of data", limit_bytes=DATA_LIMIT)
    for split, now in fingerprint_of(data).items():
        then = begun.get(split)
        if now == then:
            continue
        purpose = SPLITS[split]
        was = then.get("samples") if isinstance(then, dict) else None
        found = f"{now['samples']} samples {purpose}, were {was}"
        if now["samples"] == was:
            found = f"the {was} samples {purpose} are others than they were"
        if isinstance(data.held_out, Subset):  # versions held out other shares
            found += ", or another version of step-cli chose the share"
        raise InputError(
            f"not the data the run began with: {found}; it would not go on bit for bit",
            file=run_dir,
        )


def refuse_other_config(config: TrainConfig, run_dir: Path) -> None:
    """Refuse to go on with another configuration than the run began with.

    Raises:
        InputError: There is no run, or keys differ.
    """
    path = run_dir / "config.toml"
    if not path.is_file():
        raise InputError("nothing to resume: no run was begun here", file=run_dir)
    ours, theirs = dict(keys_of(config)), dict(keys_of(load_config(path)))
    differ = [
        f"{key} is {ours.get(key)!r}, was {theirs.get(key)!r}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    if differ:
        raise InputError(f"another configuration: {'; '.join(differ)}", file=run_dir)
