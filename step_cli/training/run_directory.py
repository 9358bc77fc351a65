"""Taking possession of a run directory: one trainer at a time, never by accident."""

import contextlib
import logging
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from step_cli.errors import InputError, OutputError, StoppedError
from step_cli.formats.files.mapped_file import reason_of
from step_cli.formats.files.target import checked_target
from step_cli.formats.files.target_lock import locked
from step_cli.training.checkpoints import has_checkpoint

logger = logging.getLogger(__name__)


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
            lost = not has_checkpoint(final) or (aside.exists() and not stopped)
            if lost and not is_finished(final):
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


def refuse_impossible(path: Path, *, force: bool) -> None:
    """Refuse to begin a run where none can be, before any work is done.

    Raises:
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


def _bring_back(final: Path) -> None:
    """Undo the replacing of a run by one that died with nothing to resume from."""
    old = _old_runs(final)
    if not old or has_checkpoint(final) or is_finished(final):
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
