"""Runs in a child process, under limits: what tensors a torch checkpoint holds.

The answer gives for each tensor where its bytes lie in the file, or, for files of
before torch 1.6, in a data file, to which they are written. Only ``weights_only=True``
is used, without a way around it.
"""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from step_cli.formats.child_process import answer

WRAPPERS = ("state_dict", "model", "module", "model_state_dict")


class Unfit(Exception):
    """The file is sound, but no state dict."""


def main(path: str, data_path: str | None) -> dict[str, Any]:
    """The document about the checkpoint at ``path``."""
    import torch

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    _limit_memory(Path(path).stat().st_size)
    # Of the mapping, or of all storages that got data.
    addresses: dict[int, None] = {}
    if data_path is None:
        _record_mapping(torch, addresses)
    else:
        _record_filled(torch, addresses)
    loaded = torch.load(
        path, map_location="cpu", weights_only=True, mmap=data_path is None
    )
    state, rest = _state_dict(torch, loaded)
    data_file = None if data_path is None else open(data_path, "wb")  # noqa: SIM115
    written: dict[int, int] = {}
    tensors = []
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            tensors.append(
                _described(torch, name, value, addresses, data_file, written)
            )
    if data_file is not None:
        data_file.close()
    return {"tensors": tensors, "rest": rest}


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


def _record_mapping(torch: Any, addresses: dict[int, None]) -> None:
    """Learn at which address torch maps the file: all storages are views of it."""
    original = torch.UntypedStorage.from_file

    def recording(*args: Any, **kwargs: Any) -> Any:
        storage = original(*args, **kwargs)
        addresses.setdefault(storage.data_ptr())
        return storage

    torch.UntypedStorage.from_file = recording


def _record_filled(torch: Any, addresses: dict[int, None]) -> None:
    """Learn which storages got data: torch leaves those not listed as they were."""
    original = torch.UntypedStorage._set_from_file

    def recording(storage: Any, *args: Any) -> Any:
        result = original(storage, *args)
        addresses.setdefault(storage.data_ptr())
        return result

    torch.UntypedStorage._set_from_file = recording


def _state_dict(torch: Any, loaded: Any) -> tuple[Mapping[str, Any], list[str]]:
    """The state dict, and the names of what stands beside it."""
    if not isinstance(loaded, Mapping):
        raise Unfit(f"holds {_in_words(torch, loaded)}, not a state dict")
    wrapped = [key for key in WRAPPERS if _has_tensors(torch, loaded.get(key))]
    if len(wrapped) > 1:
        raise Unfit(f"holds tensors under both {wrapped[0]!r} and {wrapped[1]!r}")
    state = loaded[wrapped[0]] if wrapped else loaded
    if not _has_tensors(torch, state):
        keys = ", ".join(repr(key)[:40] for key in list(state)[:3])
        raise Unfit(f"holds a dict without tensors (keys {keys or 'none'})")
    if not all(isinstance(key, str) for key in state):
        raise Unfit("holds tensors under keys that are not text")
    rest = [str(key) for key in loaded if key not in wrapped] if wrapped else []
    return state, rest


def _has_tensors(torch: Any, value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(item, torch.Tensor) for item in value.values()
    )


def _in_words(torch: Any, value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return "a lone tensor"
    return f"a {type(value).__name__}"


def _described(
    torch: Any,
    name: str,
    value: Any,
    addresses: dict[int, None],
    data_file: Any,
    written: dict[int, int],
) -> dict[str, Any]:
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
    if (
        data_file is not None
        and storage.nbytes()
        and storage.data_ptr() not in addresses
    ):
        raise Unfit(f"holds no data for {name!r:.80}")
    if data_file is None:
        mapping = next(iter(addresses), 0)
        start = storage.data_ptr() - mapping if storage.nbytes() else 0
    else:
        start = _written(storage, data_file, written)
    entry["stride"] = list(value.stride())
    entry["storage"] = [start, storage.nbytes()]
    entry["offset"] = start + value.storage_offset() * value.element_size()
    return entry


def _written(storage: Any, data_file: Any, written: dict[int, int]) -> int:
    """Where a storage stands in the data file, writing it at its first use."""
    address = storage.data_ptr()
    if address not in written:
        written[address] = data_file.tell()
        if storage.nbytes():
            import torch

            flat = torch.empty(0, dtype=torch.uint8).set_(storage)
            data_file.write(flat.numpy().data)
            data_file.write(bytes(-storage.nbytes() % 64))
    return written[address]


def in_words(error: BaseException) -> str:
    """What went wrong, without the library's advice to load it unsafely."""
    text = str(error)
    wanted = re.search(r"GLOBAL ([\w.]+)", text)
    if wanted and "nsupported" in text:
        return (
            f"wants to call {wanted[1]}, refused; save model.state_dict() instead, "
            "or a safetensors file"
        )
    if isinstance(error, Unfit):
        return f"{text}; save model.state_dict()"
    if isinstance(error, MemoryError) or "alloc" in text:
        return "needs more memory than 3 times its size and 2 GiB, refused"
    if isinstance(error, RecursionError):
        return "is nested too deep, refused"
    if isinstance(error, EOFError):
        return "truncated: its pickle ends early, get it again"
    first = re.split(r"[.\n]", text.replace("Weights only load failed. ", ""))[0]
    return (
        f"not a torch checkpoint of tensors alone ({type(error).__name__}: "
        f"{first[:120]}); save model.state_dict()"
    )


def _work(request: dict[str, Any]) -> dict[str, Any]:
    try:
        return main(request["file"], request["data"])
    except FileNotFoundError as error:
        # A library that torch loads found no temporary directory: not the file's fault.
        foreign = error.filename is None
        return {"lacks": error.strerror} if foreign else {"error": in_words(error)}
    except Exception as error:  # whatever the file provokes, the parent reports it
        return {"error": in_words(error)}


if __name__ == "__main__":
    answer(_work)
