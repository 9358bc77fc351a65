"""Files that are needed only for a while, in the system's temporary directory."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from step_cli.errors import SET_TMPDIR, OutputError
from step_cli.formats.files.mapped_file import reason_of


@contextmanager
def scratch_directory(use: str) -> Iterator[Path]:
    """A directory that is gone after the block.

    Args:
        use: A word for its name.

    Raises:
        OutputError: There is no temporary directory that can be written to.
    """
    try:
        folder = tempfile.TemporaryDirectory(prefix=f"step-cli-{use}-")
    except OSError as error:
        raise _nowhere(error) from None
    with folder as path:
        yield Path(path)


@contextmanager
def scratch_file() -> Iterator[Path]:
    """A file that is gone after the block; a mapping of it stays valid.

    Raises:
        OutputError: There is no temporary directory that can be written to.
    """
    try:
        descriptor, name = tempfile.mkstemp(prefix="step-cli-")
    except OSError as error:
        raise _nowhere(error) from None
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        with suppress(FileNotFoundError):
            os.unlink(name)


def _nowhere(error: OSError) -> OutputError:
    return OutputError(f"no temporary file: {reason_of(error)}; {SET_TMPDIR}")
