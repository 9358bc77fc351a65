"""The zip archive around a torch checkpoint, checked before torch may look at it.

torch writes members uncompressed, so each storage lies in the file as it is in memory.
"""

import io
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import cast

from step_cli.errors import InputError
from step_cli.formats.files.mapped_file import MappedFile

MOST_MEMBERS = 60_000
_END, _END64 = b"PK\x05\x06", b"PK\x06\x06"
_LOCAL = struct.Struct("<4s5H3I2H")  # local file header, 30 bytes
_ENCRYPTED = 1


@dataclass(frozen=True)
class Member:
    """A file in the archive: where its bytes lie, and where its checksum is written."""

    name: str
    begin: int
    end: int
    crc: int
    header: int  # position of its local header


def read_members(file: MappedFile) -> list[Member]:
    """Check the archive and list its members in the order of the file.

    Raises:
        InputError: It is truncated, damaged, ambiguous, compressed, or a program.
    """
    _check_count(file)
    try:
        archive = zipfile.ZipFile(io.BufferedReader(_Raw(file)))
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise InputError(
            f"truncated or damaged archive: {error}", file=file.path
        ) from None
    infos = archive.infolist()
    _check_names(infos, file)
    members = [_member(info, file) for info in infos]
    members.sort(key=lambda member: member.begin)
    reached = 0
    for member in members:
        if member.header < reached:
            raise InputError(
                f"ambiguous archive: {member.name!r} overlaps another", file=file.path
            )
        reached = member.end
        # 0 is what torch writes when it is set to compute no checksums.
        data = file.data[member.begin : member.end].data
        if member.crc and zlib.crc32(data) != member.crc:
            raise InputError(
                f"CRC mismatch in {member.name!r}: damaged, get it again",
                file=file.path,
            )
        if member.name.endswith("/byteorder") and data.tobytes() == b"big":
            raise InputError(
                "written by a big-endian machine; save it again on a little-endian one",
                file=file.path,
            )
    return members


class _Raw(io.RawIOBase):
    """The mapped bytes as a file that `zipfile` can seek in, without a copy."""

    def __init__(self, file: MappedFile) -> None:
        self._data, self._at = file.data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = offset + (0, self._at, len(self._data))[whence]
        if self._at < 0:
            raise OSError("seek before the start")
        return self._at

    def readinto(self, buffer: object) -> int:
        view = memoryview(cast(bytearray, buffer)).cast("B")
        piece = self._data[self._at : self._at + len(view)]
        view[: len(piece)] = piece.data
        self._at += len(piece)
        return len(piece)


def _check_count(file: MappedFile) -> None:
    """Refuse archives of too many members before they are listed."""
    tail = file.data[-(1 << 16) - 22 :].tobytes()
    at = tail.rfind(_END)
    if at < 0 or len(tail) < at + 22:
        raise InputError(
            "truncated: its archive has no directory, get it again", file=file.path
        )
    (count,) = struct.unpack_from("<H", tail, at + 10)
    at64 = tail.rfind(_END64)
    if count == 0xFFFF and 0 <= at64 <= len(tail) - 40:
        (count,) = struct.unpack_from("<Q", tail, at64 + 32)
    if count > MOST_MEMBERS:
        raise InputError(
            f"archive of {count} members, limit {MOST_MEMBERS}", file=file.path
        )


def _check_names(infos: list[zipfile.ZipInfo], file: MappedFile) -> None:
    names = [info.filename for info in infos]
    pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
    if len(set(names)) != len(names) or len(pickles) > 1:
        raise InputError(
            "ambiguous archive: a member, or data.pkl, stands in it twice",
            file=file.path,
        )
    for name in names:
        if name.startswith("/") or "\\" in name or ".." in name.split("/"):
            raise InputError(f"member name {name!r} leaves the archive", file=file.path)
    tops = {name.partition("/")[2] for name in names}
    if "constants.pkl" in tops or any(top.startswith("code/") for top in tops):
        raise InputError(
            "TorchScript is a program and is not loaded; save model.state_dict()",
            file=file.path,
        )
    if not pickles:
        raise InputError(
            "an archive without data.pkl, not a torch checkpoint", file=file.path
        )


def _member(info: zipfile.ZipInfo, file: MappedFile) -> Member:
    def refuse(what: str) -> InputError:
        return InputError(f"{what}: member {info.filename!r}", file=file.path)

    if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size:
        raise refuse("compressed member, save it again with torch.save")
    if info.flag_bits & _ENCRYPTED:
        raise refuse("encrypted member")
    start = info.header_offset
    header = file.data[start : start + _LOCAL.size].tobytes()
    if start < 0 or len(header) < _LOCAL.size or not header.startswith(b"PK\x03\x04"):
        raise refuse("damaged archive, no header where its directory puts it")
    *_, name_size, extra_size = _LOCAL.unpack(header)
    begin = start + _LOCAL.size + name_size + extra_size
    name = file.data[start + _LOCAL.size :][:name_size].tobytes()
    if name != (info.orig_filename.encode()):
        raise refuse("ambiguous archive, two names for one member")
    if begin + info.file_size > file.size:
        raise refuse(
            f"truncated: needs {begin + info.file_size} bytes, file has {file.size}"
        )
    return Member(info.filename, begin, begin + info.file_size, info.CRC, start)
