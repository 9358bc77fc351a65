"""Arrays put aside on the disk, as what is mapped from a file takes no memory."""

import mmap
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


class Spill:
    """A file without a name: whatever ends the process, nothing of it is left.

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
