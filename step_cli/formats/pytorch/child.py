"""Runs in a child process, under limits: what tensors a torch checkpoint holds.

The answer says for each tensor where its bytes lie in the file. Only
``weights_only=True`` is used, without a way around it.
"""

import struct
import warnings
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from step_cli.formats.child_process import answer
from step_cli.formats.pytorch.refusal import in_words
from step_cli.formats.pytorch.stand_ins import standing_in
from step_cli.formats.pytorch.state_dict import Unfit, find_state_dict


def main(path: str, *, legacy: bool, key: str | None = None) -> dict[str, Any]:
    """The document about the checkpoint at ``path``.

    Args:
        path: The file.
        legacy: Whether it is of before torch 1.6, no zip archive.
        key: Where in it the state dict lies.
    """
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    size = Path(path).stat().st_size
    _limit_memory(size)
    storages = Storages()
    finding = _skipped(storages, size) if legacy else _mapped(storages, size)
    with finding, standing_in():
        loaded = torch.load(
            path, map_location="cpu", weights_only=True, mmap=not legacy
        )
        found = find_state_dict(loaded, key)
        tensors = [
            _described(name, value, storages)
            for name, value in found.state.items()
            if isinstance(value, torch.Tensor)
        ]
    return {
        "tensors": tensors,
        "key": found.key,
        "rest": found.rest,
        "others": found.others,
    }


def _limit_memory(file_bytes: int) -> None:
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except (ImportError, OSError):
        return  # only Linux knows; the limit of processor time holds elsewhere too
    start = pages * resource.getpagesize()
    limit = start + 3 * file_bytes + (2 << 30)
    allowed = resource.getrlimit(resource.RLIMIT_AS)[1]  # by whoever started us
    if allowed != resource.RLIM_INFINITY:
        limit = min(limit, allowed)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


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


def _mapped(storages: Storages, file_bytes: int) -> Any:
    """Learn at which address torch maps the file: all storages are views of it."""

    def recording(original: Any) -> Any:
        def from_file(*args: Any, **kwargs: Any) -> Any:
            storage = original(*args, **kwargs)
            if not storages.spans:
                storages.add(storage.data_ptr(), file_bytes, 0)
            return storage

        return from_file

    return _instead("from_file", recording)


def _skipped(storages: Storages, file_bytes: int) -> Any:
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


def _described(name: str, value: Any, storages: Storages) -> dict[str, Any]:
    import torch

    entry: dict[str, Any] = {
        "name": name,
        "dtype": str(value.dtype).removeprefix("torch."),
        "shape": list(value.shape),
    }
    plain = type(value) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
    if (
        not plain
        or value.layout != torch.strided
        or value.is_quantized
        or value.is_complex()
        or value.is_nested
        or value.device.type != "cpu"
        or value.is_neg()
    ):
        return entry  # without a place: of a kind that is not supported
    storage = value.untyped_storage()
    start = storages.begin(storage) if storage.nbytes() else 0
    if start is None:
        raise Unfit(f"holds no data for {name!r:.80}, get it again")
    entry["stride"] = list(value.stride())
    entry["storage"] = [start, storage.nbytes()]
    entry["offset"] = start + value.storage_offset() * value.element_size()
    return entry


def _work(request: dict[str, Any]) -> dict[str, Any]:
    try:
        return main(request["file"], legacy=request["legacy"], key=request["key"])
    except FileNotFoundError as error:
        # A library that torch loads found no temporary directory: not the file's fault.
        foreign = error.filename is None
        return {"lacks": error.strerror} if foreign else {"error": in_words(error)}
    except Exception as error:  # whatever the file provokes, the parent reports it
        return {"error": in_words(error)}


if __name__ == "__main__":
    answer(_work)
