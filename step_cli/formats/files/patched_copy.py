"""A copy of a file with some parts replaced, streamed, and checked afterwards."""

import os
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from step_cli.errors import InputError, OutputError
from step_cli.formats.checkpoint import NamedTensor, Place
from step_cli.formats.files.mapped_file import MappedFile, map_file
from step_cli.nm.kernels import checksum
from step_cli.nm.threads import in_order

CHUNK = 4 << 20  # bytes copied at a time
WRITTEN = 128 << 10  # bytes a write; for more Linux looks for pages in one piece
FLUSHED = 256 << 20  # bytes written before the disk is made to start

Bytes = bytes | memoryview


@dataclass(frozen=True)
class Change:
    """New data for one tensor.

    Attributes:
        name: Of the tensor.
        place: Where the old data lies.
        chunks: Yields the new data, as many bytes, in the order of the file.
    """

    name: str
    place: Place
    chunks: Callable[[], Iterable[npt.NDArray[Any]]]


@dataclass(frozen=True)
class Splice:
    """Bytes ``begin`` to ``end`` of a file, and what stands there instead."""

    begin: int
    end: int
    chunks: Callable[[], Iterable[Bytes]]


def replaced(begin: int, end: int, data: bytes) -> Splice:
    """``data`` instead of the bytes ``begin`` to ``end``."""
    return Splice(begin, end, lambda: (data,))


def splice_of(change: Change) -> Splice:
    """A change as the bytes it replaces."""
    place = change.place
    return Splice(place.begin, place.end, lambda: map(bytes_of, change.chunks()))


def bytes_of(array: npt.NDArray[Any]) -> Bytes:
    """The bytes of a contiguous array, without a copy."""
    return array.reshape(-1).view(np.uint8).data if array.size else b""


def in_file(changes: Sequence[Change], file: MappedFile) -> list[Change]:
    """The changes that concern ``file``, in its order.

    Raises:
        InputError: Two of them share bytes.
    """
    found = [change for change in changes if change.place.file is file]
    found.sort(key=lambda change: change.place.begin)
    for before, after in pairwise(found):
        if after.place.begin < before.place.end:
            raise InputError(
                f"shares its data with {before.name!r}; save them apart",
                file=file.path,
                tensor=after.name,
            )
    return found


def refuse_shared(tensors: Sequence[NamedTensor], changes: Sequence[Change]) -> None:
    """Refuse to change bytes that belong to another tensor too, which is to stay.

    Raises:
        InputError: One does.
    """
    changed = {change.name for change in changes}
    reach: dict[int, tuple[int, str]] = {}  # by file: how far it is taken, and by whom
    spans = [
        (place.begin, place.end, tensor.name, place.file)
        for tensor in tensors
        if (place := tensor.place or tensor.among) is not None
        and place.begin < place.end
        and (tensor.tied_to is None or tensor.name in changed)
    ]
    for kind in (True, False):  # what changes against what stays, from both sides
        reach.clear()
        for begin, end, name, file in sorted(spans, key=itemgetter(0)):
            far, owner = reach.get(id(file), (0, ""))
            if (name in changed) is kind:
                if end > far:
                    reach[id(file)] = end, name
            elif begin < far:
                one, other = (owner, name) if kind else (name, owner)
                raise InputError(
                    f"shares its data with {one!r}, which changes; save them apart",
                    file=file.path,
                    tensor=other,
                )


def copy_patched(source: MappedFile, target: Path, splices: Sequence[Splice]) -> None:
    """Write ``source`` to ``target`` with the splices, and read it back.

    Raises:
        OutputError: What reads back is not what was written.
        OSError: The system refuses a write.
    """
    try:
        with open(target, "wb") as file, closing(_Counted(file)) as out:
            _copy_around(source, splices, out.write)
    except OSError as error:  # a failed write does not name its file
        raise OSError(error.errno, error.strerror, str(target)) from error
    source.check_unchanged()
    out.check(target)


def copy_file(source: Path, target: Path) -> None:
    """Copy a file byte for byte, and read it back."""
    if source.stat().st_size:
        copy_patched(map_file(source), target, [])
    else:
        target.touch()


def pieces(source: MappedFile, begin: int, end: int) -> Iterable[memoryview]:
    """The bytes ``begin`` to ``end`` of a file, a chunk at a time."""
    for start in range(begin, end, CHUNK):
        yield source.data[start : min(start + CHUNK, end)].data


def _copy_around(
    source: MappedFile, splices: Sequence[Splice], write: Callable[[Bytes], None]
) -> None:
    at = 0
    for splice in sorted(splices, key=lambda splice: (splice.begin, splice.end)):
        _copy(source, at, splice.begin, write)
        for chunk in splice.chunks():
            write(chunk)
        at = splice.end
    _copy(source, at, source.size, write)


def _copy(
    source: MappedFile, begin: int, end: int, write: Callable[[Bytes], None]
) -> None:
    for piece in pieces(source, begin, end):
        write(piece)


class _Counted:
    """Sums up each chunk that is written, to compare with what reads back.

    The disk works in the background meanwhile: what it has at the end need not be
    waited for.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._at, self._flushed = file, 0, 0
        self._sums: list[tuple[int, int, int]] = []  # begin, end, checksum
        self._flusher: threading.Thread | None = None

    def write(self, chunk: Bytes) -> None:
        begin, self._at = self._at, self._at + len(chunk)
        for start in range(0, len(chunk), WRITTEN):
            self._file.write(chunk[start : start + WRITTEN])
        self._sums.append((begin, self._at, _sum_of(chunk)))
        if self._at - self._flushed >= FLUSHED and not self._busy():
            self._flushed = self._at
            self._flusher = threading.Thread(target=self._flush)
            self._flusher.start()

    def close(self) -> None:
        if self._flusher is not None:
            self._flusher.join()

    def _busy(self) -> bool:
        return self._flusher is not None and self._flusher.is_alive()

    def _flush(self) -> None:
        with suppress(OSError):  # `staged` flushes again, and raises
            os.fdatasync(self._file.fileno())

    def check(self, path: Path) -> None:
        """Compare what lies at ``path`` with what was written."""
        same = path.stat().st_size == self._at
        if same and self._at:
            data = map_file(path).data
            tasks = (
                partial(_sums_to, data[begin:end].data, known)
                for begin, end, known in self._sums
            )
            same = all(list(in_order(tasks, threads=self._at >= FLUSHED)))
        if not same:
            raise OutputError(
                "what was written does not read back; check the disk", file=path
            )


def _sums_to(chunk: Bytes, known: int) -> bool:
    return _sum_of(chunk) == known


def _sum_of(chunk: Bytes) -> int:
    fast = checksum(np.frombuffer(chunk, np.uint8))
    return zlib.crc32(chunk) if fast is None else fast
