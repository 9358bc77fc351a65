"""A copy of a file with some parts replaced, streamed, and checked afterwards."""

import os
import threading
import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from step_cli.errors import InputError, OutputError
from step_cli.formats.checkpoint import NamedTensor, Place
from step_cli.formats.files.mapped_file import MappedFile, map_file
from step_cli.formats.files.sharing import overlapping
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
    """The changes that concern ``file``, in its order; one for what lies interleaved.

    `refuse_shared` has seen that no two of them have an element in common.
    """
    found = [change for change in changes if change.place.file is file]
    joined: list[Change] = []
    for change in sorted(found, key=lambda change: change.place.begin):
        if joined and change.place.begin < joined[-1].place.end:
            change = _joined(joined.pop(), change)
        joined.append(change)
    return joined


def _joined(one: Change, other: Change) -> Change:
    """Two changes, each of elements between those of the other, as one."""
    file, begin = one.place.file, one.place.begin
    place = Place(file, begin, max(one.place.end, other.place.end))

    def chunks() -> Iterable[npt.NDArray[Any]]:
        old = file.data[begin : place.end]
        new = old.copy()
        for change in (one, other):
            at = change.place.begin - begin
            for chunk in map(bytes_of, change.chunks()):
                span = slice(at, at + len(chunk))
                new[span] ^= old[span] ^ np.frombuffer(chunk, np.uint8)
                at = span.stop
        return [new]

    return Change(one.name, place, chunks)


def refuse_shared(tensors: Sequence[NamedTensor], changes: Sequence[Change]) -> None:
    """Refuse to change bytes that belong to another tensor too, which is to stay.

    Raises:
        InputError: One does, or two that change share bytes.
    """
    changed = {change.name for change in changes}
    # One that an ONNX graph uses in two ways is there twice, by the same name.
    own = (t for t in tensors if t.tied_to is None or t.name in changed)
    alone = list({tensor.name: tensor for tensor in own}.values())
    for one, other in overlapping(alone):
        if not changed & {one.name, other.name}:
            continue
        first, second = (one, other) if one.name in changed else (other, one)
        which = "" if second.name in changed else ", which changes"
        place = first.place or first.among
        raise InputError(
            f"shares its data with {first.name!r}{which}; save them apart",
            file=None if place is None else place.file.path,
            tensor=second.name,
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
