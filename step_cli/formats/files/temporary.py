"""Files that are needed only for a while, in the system's temporary directory."""

import math
import mmap
import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from step_cli.errors import SET_TMPDIR, OutputError
from step_cli.formats.files.mapped_file import reason_of
from step_cli.nm.dtypes import numpy_dtype


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
    """Arrays in a file, as what is mapped from a file takes no memory.

    Without ``path`` the file has no name: whatever ends the process, nothing is left.

    Args:
        folder: On which disk; None: where temporary files go.
        path: A file to make, or to make anew, that stays.
    """

    def __init__(self, folder: Path | None = None, path: Path | None = None) -> None:
        self._file = (
            tempfile.TemporaryFile(dir=folder)  # noqa: SIM115
            if path is None
            else open(path, "w+b")  # noqa: SIM115
        )
        self.places: list[ArrayPlace] = []

    def add(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Write an array, and return it as mapped from the file, read-only."""
        return self.add_blocks([array], array)

    def add_blocks(
        self, blocks: Iterable[npt.NDArray[Any]], like: npt.NDArray[Any]
    ) -> npt.NDArray[Any]:
        """Write an array of the dtype and shape of ``like``, some of it at a time."""
        begin = self._file.seek(0, 2)
        begin += -begin % mmap.ALLOCATIONGRANULARITY
        place = ArrayPlace(begin, like.dtype.name, like.shape)
        self.places.append(place)
        self._file.seek(begin)
        for block in blocks:
            flat = np.ascontiguousarray(block).reshape(-1)
            self._file.write(flat.view(np.uint8).data)
        self._file.flush()
        return place.mapped(self._file)

    def flush(self) -> None:
        """Have all that was added written to the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Give the space back, or leave the file; arrays in use stay valid."""
        self._file.close()


class ArrayPlace(NamedTuple):
    """Where an array lies in a file: its first byte, its dtype and its shape."""

    begin: int
    dtype: str
    shape: tuple[int, ...]

    def mapped(self, file: IO[bytes]) -> npt.NDArray[Any]:
        """The array, read-only, in no memory; ``file`` may be closed then.

        Raises:
            ValueError: The file ends before it.
        """
        dtype = numpy_dtype(self.dtype)
        size = math.prod(self.shape) * dtype.itemsize
        if not size:
            return np.empty(self.shape, dtype)
        data = mmap.mmap(
            file.fileno(), size, access=mmap.ACCESS_READ, offset=self.begin
        )
        return np.frombuffer(data, dtype).reshape(self.shape)


def _nowhere(error: OSError) -> OutputError:
    return OutputError(f"no temporary file: {reason_of(error)}; {SET_TMPDIR}")
