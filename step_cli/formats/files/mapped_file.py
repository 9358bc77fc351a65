"""A regular file, opened read-only and mapped; anything else is refused.

Pages of a mapped file are the kernel's to drop, so a file of any size costs no memory.
"""

import hashlib
import mmap
import os
import stat
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from step_cli.errors import InputError, MissingError

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class MappedFile:
    """The bytes of a file, read-only, and by what a later change is seen."""

    path: Path
    data: Bytes
    stamp: tuple[int, int]  # size in bytes, modification time in ns

    @property
    def size(self) -> int:
        """Size in bytes when it was opened."""
        return self.stamp[0]

    def head(self, count: int) -> bytes:
        """The first ``count`` bytes, or fewer if there are no more."""
        return self.data[:count].tobytes()

    def check_unchanged(self) -> None:
        """Raise InputError if the file was written to since it was opened."""
        try:
            now = os.stat(self.path)
        except OSError:
            return  # replaced or removed: the mapping still holds what was opened
        if self.stamp != (now.st_size, now.st_mtime_ns):
            raise InputError(
                "changed during the read, run again when nothing writes to it",
                file=self.path,
            )


def is_directory(path: Path) -> bool:
    """Whether ``path`` is a directory.

    Raises:
        InputError: It is missing, or may not be looked at.
    """
    try:
        return stat.S_ISDIR(os.stat(path).st_mode)
    except (OSError, ValueError) as error:
        found = reason_of(error)
        if isinstance(error, FileNotFoundError) and any(c in str(path) for c in "*?["):
            found += "; a shell leaves a pattern as it is if no file matches it"
        raise InputError(found, file=path) from None


def map_file(path: Path) -> MappedFile:
    """Open and map ``path``.

    Raises:
        InputError: It is missing, unreadable, empty, or not a regular file.
        MissingError: This machine is big-endian; the formats are little-endian.
    """
    if sys.byteorder != "little":
        raise MissingError("checkpoints are little-endian, this machine is not")
    try:
        # Without O_NONBLOCK, opening a pipe would wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        raise InputError(reason_of(error), file=path) from None
    try:
        return _mapped(descriptor, path)
    except OSError as error:
        raise InputError(reason_of(error), file=path) from None
    finally:
        os.close(descriptor)


def _mapped(descriptor: int, path: Path) -> MappedFile:
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise InputError("not a regular file", file=path)
    if status.st_size == 0:
        # Entries of /proc have size 0, and are not empty.
        empty = not os.read(descriptor, 1)
        found = "file is empty, get it again" if empty else "not a regular file"
        raise InputError(found, file=path)
    mapped = mmap.mmap(descriptor, status.st_size, access=mmap.ACCESS_READ)
    data = np.frombuffer(mapped, np.uint8)
    return MappedFile(path, data, (status.st_size, status.st_mtime_ns))


def reason_of(error: Exception) -> str:
    """The cause in words: ``no such file or directory``."""
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return words[:1].lower() + words[1:]


def in_units(size_bytes: int) -> str:
    """A size for people: ``89 MiB``."""
    value = float(size_bytes)
    for unit in ("bytes", "KiB", "MiB", "GiB"):
        if value < 1024:
            digits = 0 if unit == "bytes" or value >= 10 else 1
            return f"{value:.{digits}f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def sha256(path: Path) -> str:
    """The digest of a file, in hexadecimal."""
    return hashlib.sha256(map_file(path).data.data).hexdigest()
