"""Taking possession of a run directory: one trainer at a time, never by accident."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from step_cli.errors import InputError, OutputError, StoppedError
from step_cli.formats.mapped_file import reason_of
from step_cli.formats.target import checked_target
from step_cli.formats.target_lock import locked
from step_cli.training.checkpoints import has_checkpoint


@contextmanager
def run_directory(path: Path, *, force: bool) -> Iterator[Path]:
    """Make the directory of a new run, and keep other trainers out of it.

    The directory grows in place, so that a run can be followed and resumed. With
    ``force`` an old run stands aside meanwhile; it comes back if the new one fails.

    Raises:
        OutputError: It exists without ``force``, another trainer is in it, or the
            system refuses.
    """
    with _held(path, force=force) as final:
        aside = final.with_name(f".{final.name}.old-{os.getpid()}")
        if final.exists():
            os.rename(final, aside)
        try:
            final.mkdir()
            yield final
        except BaseException as error:
            stopped = isinstance(error, StoppedError)
            if not has_checkpoint(final) or (aside.exists() and not stopped):
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
    if not path.is_dir():
        raise InputError("nothing to resume: no such run directory", file=path)
    with _held(path, force=True) as final:
        yield final
        _forget_old_runs(final)


@contextmanager
def _held(path: Path, *, force: bool) -> Iterator[Path]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        real = Path(os.path.realpath(path))
        with locked(real, shown=path):
            left = sorted(real.parent.glob(f".{real.name}.old-*"))
            if left and not real.exists():  # died between making room and beginning
                os.rename(left[-1], real)
            yield checked_target(path, force=force, directory=True)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise OutputError(reason_of(error), file=where) from error


def _forget_old_runs(final: Path) -> None:
    """What stood aside, also of trainers that died; nobody else holds the lock."""
    for old in final.parent.glob(f".{final.name}.old-*"):
        shutil.rmtree(old, ignore_errors=True)
