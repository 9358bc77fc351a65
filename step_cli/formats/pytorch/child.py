"""Runs in a child process, under limits: what tensors a torch checkpoint holds.

The answer says for each tensor where its bytes lie in the file. Only
``weights_only=True`` is used, without a way around it.
"""

import warnings
from pathlib import Path
from typing import Any

from step_cli.formats.child_process import answer
from step_cli.formats.pytorch.refusal import in_words
from step_cli.formats.pytorch.stand_ins import standing_in
from step_cli.formats.pytorch.state_dict import Unfit, find_state_dict, pairs
from step_cli.formats.pytorch.storages import Storages, mapped, skipped


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
    finding = skipped(storages, size) if legacy else mapped(storages, size)
    with finding, standing_in():
        loaded = torch.load(
            path, map_location="cpu", weights_only=True, mmap=not legacy
        )
        found = find_state_dict(loaded, key)
        tensors = [
            _described(name, value, storages)
            for name, value in pairs(found.state)
            if isinstance(value, torch.Tensor)
        ]
    return {
        "tensors": tensors,
        "key": found.key,
        "rest": found.rest,
        "others": found.others,
        "sharing": _sharing(loaded, found.state, storages),
    }


def _sharing(loaded: Any, state: Any, storages: Storages) -> list[Any]:
    """Tensors elsewhere in the file that lie in storages of the state dict.

    They are named by the keys that lead to them.
    """
    import torch

    taken = {x.untyped_storage().data_ptr() for _, x in pairs(state) if _plain(x)}
    found, seen = [], {id(state)}
    left: list[tuple[str, Any]] = [("", loaded)]
    while left:
        path, value = left.pop()
        if isinstance(value, dict | list | tuple) and id(value) not in seen:
            seen.add(id(value))
            inside = pairs(value) if isinstance(value, dict) else enumerate(value)
            left += [(f"{path}.{key}" if path else f"{key}", x) for key, x in inside]
        elif isinstance(value, torch.Tensor) and _plain(value) and value.numel():
            storage = value.untyped_storage()
            if storage.data_ptr() in taken:
                found.append(_described(path, value, storages))
    return found


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


def _described(name: str, value: Any, storages: Storages) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "name": name,
        "dtype": str(value.dtype).removeprefix("torch."),
        "shape": list(value.shape),
    }
    if not _plain(value):
        return entry  # without a place: of a kind that is not supported
    storage = value.untyped_storage()
    start = storages.begin(storage) if storage.nbytes() else 0
    if start is None:
        raise Unfit(f"holds no data for {name!r:.80}, get it again")
    entry["stride"] = list(value.stride())
    entry["storage"] = [start, storage.nbytes()]
    entry["offset"] = start + value.storage_offset() * value.element_size()
    return entry


def _plain(value: Any) -> bool:
    """Whether it is a tensor whose elements are numbers that stand in the file."""
    import torch

    return (
        type(value) in (torch.Tensor, torch.nn.Parameter, torch.nn.Buffer)
        and value.layout == torch.strided
        and not value.is_quantized
        and not value.is_complex()
        and not value.is_nested
        and value.device.type == "cpu"
        and not value.is_neg()
    )


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
