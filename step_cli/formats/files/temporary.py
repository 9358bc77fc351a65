"""Files that are needed only for a while, in the system's temporary directory."""

import mmap
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.errors import SET_TMPDIR, OutputError
from step_cli.formats.files.mapped_file import reason_of


@contextmanager
def temporary_directory(use: str) -> Iterator[Path]:
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
def temporary_file() -> Iterator[Path]:
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


class ArraysOnDisk:
    """Arrays in a temporary file, as what is mapped from a file takes no memory.

    The file has no name: whatever ends the process, nothing of it is left.

    Args:
        folder: On which disk; None: where temporary files go.
    """

    def __init__(self, folder: Path | None = None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115

    def add(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Write an array, and return it as mapped from the file, read-only."""
        if not array.size:
            return array
        begin = self._file.seek(0, 2)
        self._file.seek(begin + -begin % mmap.ALLOCATIONGRANULARITY)
        begin = self._file.tell()
        flat = np.ascontiguousarray(array).reshape(-1)
        self._file.write(flat.view(np.uint8).data)
        self._file.flush()
        mapped = mmap.mmap(
            self._file.fileno(), flat.nbytes, access=mmap.ACCESS_READ, offset=begin
        )
        return np.frombuffer(mapped, array.dtype).reshape(array.shape)

    def close(self) -> None:
        """Give the space back; arrays still in use stay valid."""
        self._file.close()


def _nowhere(error: OSError) -> OutputError:
    return OutputError(f"no temporary file: {reason_of(error)}; {SET_TMPDIR}")
