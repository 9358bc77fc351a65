"""A torch checkpoint as a list of named arrays, unpickled in a child process only.

The child reports where each tensor lies; the data is mapped from the file itself.
"""

import importlib.util
import math
import os
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.errors import SET_TMPDIR, InputError, MissingError, OutputError
from step_cli.formats import plan as plans
from step_cli.formats.checkpoint import Checkpoint, NamedTensor, Place
from step_cli.formats.child_process import ChildDiedError, ask
from step_cli.formats.files.mapped_file import MappedFile, in_units
from step_cli.formats.files.sharing import with_sharing
from step_cli.formats.files.strided import fills, order_of
from step_cli.formats.plan import check_digest
from step_cli.formats.pytorch.archive import read_members
from step_cli.formats.zero_points import with_zero_points
from step_cli.nm.dtypes import numpy_dtype
from step_cli.nm.pattern import Plan

CHILD = "step_cli.formats.pytorch.child"
LONGEST_S = 60  # for any file, plus one second for each 20 MB
MOST_EXPANDED = 64 << 20  # bytes a tensor may have beyond those that are stored


def open_torch(file: MappedFile, key: str | None = None) -> Checkpoint:
    """The checkpoint in a file of `torch.save`, a zip archive or of before torch 1.6.

    Args:
        file: The file.
        key: The keys to its state dict, joined by dots; None: where it usually lies.

    Raises:
        InputError: Its archive or pickle is refused, or it holds no state dict.
        MissingError: torch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise MissingError(
            "reading it needs torch: pip install 'step-cli[train]'", file=file.path
        )
    integrity, storages = "unchecked", None
    legacy = file.head(2) != b"PK"
    if not legacy:
        members = read_members(file)
        storages = {member.begin: member.end for member in members}
        if all(member.crc or member.begin == member.end for member in members):
            integrity = "crc32"
    document = _run_child(file, legacy, key)
    seen: dict[object, str] = {}
    tensors = [_tensor(entry, file, storages, seen) for entry in document["tensors"]]
    others = [_tensor(entry, file, storages, {}) for entry in document["sharing"]]
    plan, compared = _plan_beside(file.path)
    return Checkpoint(
        file.path,
        "torch",
        with_zero_points(with_sharing(tensors, others)),
        plan,
        _notes(document),
        (file.path,),
        "sha256" if compared else integrity,
        key=key,
    )


def _notes(document: dict[str, Any]) -> tuple[str, ...]:
    notes = []
    if document["key"] is not None:
        notes.append(f"reads the state dict under {document['key']!r:.80}")
    if document["rest"]:
        notes.append(f"carried over unread: {', '.join(document['rest'])[:300]}")
    if document["others"]:
        others = ", ".join(f"{path!r:.80}" for path in document["others"][:8])
        notes.append(f"tensors lie under {others} too; --key chooses")
    return tuple(notes)


def plan_path(path: Path) -> Path:
    """Where the plan of a torch file stands."""
    return path.with_name(f"{path.name}.{plans.FILE}")


def _plan_beside(path: Path) -> tuple[Plan | None, bool]:
    """The plan, if there is one, and whether a digest in it was compared."""
    beside = plan_path(path)
    if not os.path.lexists(beside):
        return None, False
    document = plans.read_document(beside)
    compared = check_digest(path, document, beside)
    return plans.plan_of(document, file=beside), compared


def _run_child(file: MappedFile, legacy: bool, key: str | None) -> dict[str, Any]:
    request = {"file": os.path.abspath(file.path), "legacy": legacy, "key": key}
    limit_s = LONGEST_S + file.size / 20e6
    try:
        document = ask(CHILD, request, limit_s=limit_s).document
    except TimeoutError as error:
        raise InputError(f"reading it {error}, refused", file=file.path) from None
    except ChildDiedError as died:
        document = {"error": f"torch could not read it ({died})"}
    if "lacks" in document:
        raise OutputError(
            f"reading it: {document['lacks']}; {SET_TMPDIR}", file=file.path
        )
    if "error" in document:
        raise InputError(document["error"], file=file.path)
    file.check_unchanged()
    return document


def _tensor(
    entry: dict[str, Any],
    file: MappedFile,
    storages: dict[int, int] | None,
    seen: dict[object, str],
) -> NamedTensor:
    name, shape = entry["name"], tuple(entry["shape"])
    dtype = _dtype(entry["dtype"])
    if "offset" not in entry or dtype is None:
        return NamedTensor(
            name, entry["dtype"], shape, partial(_refuse_kind, file, name), skip="kind"
        )
    strides = tuple(stride * dtype.itemsize for stride in entry["stride"])
    begin = entry["offset"]
    span = _checked_span(entry, dtype, strides, storages, file)
    logical = math.prod(shape) * dtype.itemsize
    first = seen.setdefault((begin, shape, strides, dtype), name) if span else name
    order = order_of(shape, strides)
    whole = not span or (
        logical == span and fills(shape, strides, dtype.itemsize, order)
    )
    place = Place(file, begin, begin + span, order, None if whole else strides)
    return NamedTensor(
        name=name,
        dtype=dtype.name,
        shape=shape,
        read=partial(_view, file, begin, span, dtype, shape, strides),
        tied_to=None if first == name else first,
        place=place if whole else None,
        among=None if whole else place,
    )


def _checked_span(
    entry: dict[str, Any],
    dtype: np.dtype[Any],
    strides: tuple[int, ...],
    storages: dict[int, int] | None,
    file: MappedFile,
) -> int:
    """The bytes from a tensor's first element to its last, all within its storage."""

    def refuse(what: str) -> InputError:
        return InputError(what, file=file.path, tensor=entry["name"])

    shape, begin, (start, size) = entry["shape"], entry["offset"], entry["storage"]
    span = (
        sum((n - 1) * s for n, s in zip(shape, strides, strict=True)) + dtype.itemsize
    )
    if 0 in shape:
        span = 0
    elif storages is not None and storages.get(start) != start + size:
        raise refuse("its data is no member of the archive")
    end = min(start + size, file.size)
    if min(strides, default=0) < 0 or begin < start or begin + span > end:
        raise refuse(f"shape {shape} needs {span} bytes, its storage has {size}")
    logical = math.prod(shape) * dtype.itemsize
    if logical > span + MOST_EXPANDED:
        raise refuse(f"{in_units(logical)} logical, {span} bytes stored, refused")
    return int(span)


def _view(
    data: MappedFile,
    begin: int,
    span: int,
    dtype: np.dtype[Any],
    shape: tuple[int, ...],
    strides: tuple[int, ...],
) -> npt.NDArray[Any]:
    data.check_unchanged()
    if not span:
        return np.zeros(shape, dtype)
    # As bits, since NumPy's strides do not know every type of ml_dtypes.
    bits = data.data[begin : begin + span].view(f"u{dtype.itemsize}")
    strided = np.lib.stride_tricks.as_strided(bits, shape, strides, writeable=False)
    return strided.view(dtype)


def _refuse_kind(file: MappedFile, name: str) -> npt.NDArray[Any]:
    raise InputError("of a kind that cannot be read", file=file.path, tensor=name)


def _dtype(name: str) -> np.dtype[Any] | None:
    """The NumPy type of that name; None where one element is not one number."""
    if name.endswith("_x2"):
        return None
    try:
        return numpy_dtype(name)
    except TypeError:
        return None
