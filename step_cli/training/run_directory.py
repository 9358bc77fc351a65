"""Taking possession of a run directory: one trainer at a time, never by accident."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from step_cli.errors import OutputError
from step_cli.formats.mapped_file import reason_of
from step_cli.formats.target import checked_target
from step_cli.formats.target_lock import locked


@contextmanager
def run_directory(path: Path, *, force: bool) -> Iterator[Path]:
    """Make the directory of a new run, and keep other trainers out of it.

    The directory grows in place, so that a run can be followed. With ``force`` an old
    run stands aside meanwhile, and comes back if the new one does not end well.

    Raises:
        OutputError: It exists without ``force``, another trainer is in it, or the
            system refuses.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        final = checked_target(path, force=force, directory=True)
        with locked(final, shown=path):
            aside = final.with_name(f".{final.name}.old-{os.getpid()}")
            if final.exists():
                os.rename(final, aside)
            try:
                final.mkdir()
                yield final
            except BaseException:
                shutil.rmtree(final, ignore_errors=True)
                if aside.exists():
                    os.rename(aside, final)
                raise
            shutil.rmtree(aside, ignore_errors=True)
    except OSError as error:
        where = error.filename if isinstance(error.filename, str) else path
        raise OutputError(reason_of(error), file=where) from error
