"""In the child process: where the data of torch's storages lies in the file.

torch reads the pickle; the data itself is not read.
"""

import struct
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from step_cli.formats.pytorch.state_dict import Unfit


@dataclass
class Storages:
    """Where memory that torch gave to storages comes from in the file."""

    # By address: how many bytes, and where they begin in the file.
    spans: dict[int, tuple[int, int]] = field(default_factory=dict)
    _sorted: list[int] = field(default_factory=list)

    def add(self, address: int, size: int, begin: int) -> None:
        """Remember that ``size`` bytes at ``address`` stand from ``begin`` on."""
        self.spans[address] = size, begin

    def begin(self, storage: Any) -> int | None:
        """Where the bytes of a storage begin in the file; None: not from there."""
        if len(self._sorted) != len(self.spans):
            self._sorted = sorted(self.spans)
        address, size = storage.data_ptr(), storage.nbytes()
        at = bisect_right(self._sorted, address) - 1
        if at < 0:
            return None
        first = self._sorted[at]
        whole, begin = self.spans[first]
        return begin + address - first if address + size <= first + whole else None


@contextmanager
def _instead(method: str, made: Callable[[Any], Any]) -> Iterator[None]:
    """Within it, a method of torch's storages is what ``made`` makes of it."""
    from torch import UntypedStorage

    original = getattr(UntypedStorage, method)
    setattr(UntypedStorage, method, made(original))
    try:
        yield
    finally:
        setattr(UntypedStorage, method, original)


def mapped(storages: Storages, file_bytes: int) -> AbstractContextManager[None]:
    """Learn at which address torch maps the file: all storages are views of it."""

    def recording(original: Any) -> Any:
        def from_file(*args: Any, **kwargs: Any) -> Any:
            storage = original(*args, **kwargs)
            if not storages.spans:
                storages.add(storage.data_ptr(), file_bytes, 0)
            return storage

        return from_file

    return _instead("from_file", recording)


def skipped(storages: Storages, file_bytes: int) -> AbstractContextManager[None]:
    """Learn where the data of each storage lies in a file of before torch 1.6.

    It is not read: pages of the storages that are not written to take no memory.
    """

    def skipping(_: Any) -> Any:
        def set_from_file(
            storage: Any, file: Any, offset: int, direct: bool, itemsize: int
        ) -> None:
            file.seek(offset)
            (count,) = struct.unpack("<q", file.read(8).ljust(8, b"\xff"))
            begin, size = offset + 8, storage.nbytes()
            if begin + size > file_bytes:
                needed = f"needs {begin + size} bytes, file has {file_bytes}"
                raise Unfit(f"truncated: {needed}, get it again")
            if count * itemsize != size:
                raise Unfit(f"a storage of {size} bytes has {count} elements, damaged")
            file.seek(begin + size)
            storages.add(storage.data_ptr(), size, begin)

        return set_from_file

    return _instead("_set_from_file", skipping)
