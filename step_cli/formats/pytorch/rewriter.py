"""A torch checkpoint with some tensors changed in place, checksums of an archive too.

The pickle is copied as it is, so whatever else stands in the file is carried over.
"""

import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from step_cli.errors import InputError
from step_cli.formats.files.mapped_file import MappedFile
from step_cli.formats.files.patched_copy import (
    Bytes,
    Change,
    Splice,
    bytes_of,
    copy_patched,
    in_file,
    pieces,
    splice_of,
)
from step_cli.formats.pytorch.archive import Member, read_members

_HAS_DESCRIPTOR = 1 << 3  # the checksum follows the data
_CENTRAL = 46  # bytes of a directory entry before its names


def rewrite_torch(source: MappedFile, target: Path, changes: Sequence[Change]) -> None:
    """Write ``source`` to ``target`` with the changes.

    Raises:
        InputError: A change is in no member of the archive.
        OutputError: What was written does not read back.
    """
    wanted = in_file(changes, source)
    if not wanted or source.head(2) != b"PK":  # of before torch 1.6: no checksums
        copy_patched(source, target, [splice_of(change) for change in wanted])
        return
    splices: list[Splice] = []
    entries = _directory_entries(source)
    for member in read_members(source):
        inside = [c for c in wanted if member.begin <= c.place.begin < member.end]
        if inside:
            splices += _Rewritten(source, member, inside).splices(entries)
    copy_patched(source, target, splices)


class _Rewritten:
    """A member with changes; its checksum is known once it has been written."""

    def __init__(
        self, source: MappedFile, member: Member, changes: list[Change]
    ) -> None:
        self._source, self._member, self._changes = source, member, changes
        self._crc = 0

    def splices(self, entries: dict[int, int]) -> list[Splice]:
        """The data, and every place where its checksum stands."""
        member, data = self._member, self._source.data
        whole = Splice(member.begin, member.end, self._chunks)
        if not member.crc:  # written without checksums
            return [whole]
        (flags,) = struct.unpack("<H", data[member.header + 6 :][:2].tobytes())
        places = [entries[member.header] + 16]
        if flags & _HAS_DESCRIPTOR:
            signed = data[member.end :][:4].tobytes() == b"PK\x07\x08"
            places.append(member.end + (4 if signed else 0))
        else:  # it stands before the data, so it is computed ahead
            for _ in self._chunks():
                pass
            places.append(member.header + 14)
        return [whole, *(Splice(at, at + 4, self._checksum) for at in places)]

    def _checksum(self) -> list[Bytes]:
        return [struct.pack("<I", self._crc)]

    def _chunks(self) -> Iterator[Bytes]:
        self._crc = 0
        for chunk in self._parts():
            self._crc = zlib.crc32(chunk, self._crc)
            yield chunk

    def _parts(self) -> Iterator[Bytes]:
        at = self._member.begin
        for change in self._changes:
            yield from pieces(self._source, at, change.place.begin)
            yield from map(bytes_of, change.chunks())
            at = change.place.end
        yield from pieces(self._source, at, self._member.end)


def _directory_entries(source: MappedFile) -> dict[int, int]:
    """Where each member's entry in the directory stands, by that of its header."""
    data = source.data
    at, end = _directory(source)
    found: dict[int, int] = {}
    while at < end:
        entry = data[at : at + _CENTRAL].tobytes()
        if not entry.startswith(b"PK\x01\x02") or len(entry) < _CENTRAL:
            raise InputError("damaged archive directory", file=source.path)
        name, extra, comment = struct.unpack_from("<3H", entry, 28)
        (header,) = struct.unpack_from("<I", entry, 42)
        if header == 0xFFFFFFFF:
            fields = data[at + _CENTRAL + name :][:extra].tobytes()
            header = _wide_header(entry, fields, source)
        found[header] = at
        at += _CENTRAL + name + extra + comment
    return found


def _directory(source: MappedFile) -> tuple[int, int]:
    """Begin and end of the directory, from the record at the end of the file."""
    tail = source.data[-(1 << 16) - 22 :].tobytes()
    at = tail.rfind(b"PK\x05\x06")
    size, start = struct.unpack_from("<II", tail, at + 12)
    wide = tail.rfind(b"PK\x06\x06")
    if 0xFFFFFFFF in (size, start) and wide >= 0:
        size, start = struct.unpack_from("<QQ", tail, wide + 40)
    return start, start + size


def _wide_header(entry: bytes, extra: bytes, source: MappedFile) -> int:
    """A header position of 64 bits, the last number of the zip64 field."""
    size, packed = struct.unpack_from("<I", entry, 24)[0], entry[20:24]
    skipped = 8 * (size == 0xFFFFFFFF) + 8 * (packed == b"\xff\xff\xff\xff")
    at = 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1 and length >= skipped + 8:
            return int(struct.unpack_from("<Q", extra, at + 4 + skipped)[0])
        at += 4 + length
    raise InputError("damaged archive directory", file=source.path)
