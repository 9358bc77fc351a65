"""Compressed checkpoints: kept values and sparse metadata in one safetensors file.

The format is specified in ``docs/format.md``; the packing is `codec`.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from step_cli.errors import InputError
from step_cli.formats.checkpoint import NamedTensor
from step_cli.formats.compressed.codec import (
    Array,
    Layout,
    kept_values,
    packed_positions,
)
from step_cli.formats.compressed.codes import scales_of
from step_cli.formats.plan import KEY as PLAN_KEY
from step_cli.formats.plan import plan_json
from step_cli.formats.safetensors.header import CODES
from step_cli.formats.safetensors.header import COMPRESSED_KEY as KEY
from step_cli.formats.safetensors.writer import (
    TensorToSave,
    packed_header,
    save_safetensors,
)
from step_cli.nm.pattern import Plan

HEADER_KEY = "step_cli.header_sha256"
SCHEMA = "step-cli/compressed/1"
WITH_CODES = "step-cli/compressed/2"  # some compressed tensors are codes with scales
VALUES, POSITIONS = ".nm_values", ".nm_positions"
UNKNOWN = "0" * 64  # a checksum before it is known


@dataclass
class Written:
    """What went into a compressed file, in bytes.

    Attributes:
        values: Kept values of the compressed tensors.
        metadata: Their sparse metadata.
        negative_zeros: How many -0.0 were dropped; they return as +0.0.
    """

    values: int = 0
    metadata: int = 0
    negative_zeros: int = 0


def save_compressed(
    path: Path,
    tensors: Sequence[NamedTensor],
    plan: Plan,
    metadata: Mapping[str, str] | None = None,
) -> Written:
    """Write ``tensors`` to ``path``, those of the plan compressed.

    Where one of them holds codes with a scale beside it, the file says which tensors
    are codes, and is of version 2; all others are of version 1.

    Streams: memory for one chunk, each tensor read twice at most.

    Args:
        path: The file to write; `staged` makes that safe.
        tensors: All tensors of the checkpoint.
        plan: The pattern of each compressed tensor, which it must hold.
        metadata: Of the user's, kept in the header.

    Raises:
        InputError: A name is one that this format makes itself, or a tensor's zero
            is not the code 0.
        ValueError: A tensor breaks its pattern.
    """
    layouts = {
        tensor.name: Layout(tensor.shape, plan[tensor.name])
        for tensor in tensors
        if tensor.name in plan and not plan[tensor.name].pattern.dense
    }
    codes = scales_of(tensors, plan)
    if not codes.keys() & layouts.keys():
        codes = {}
    kinds = {tensor.name: CODES[tensor.dtype] for tensor in tensors}
    meant = {n: {"type": kinds[n], "scale": codes[n]} for n in sorted(codes)}
    written, digests = Written(), dict[str, str]()
    stored: dict[str, TensorToSave] = {}
    for tensor in tensors:
        parts = _parts(tensor, layouts.get(tensor.name), written)
        for name, part in parts.items():
            if name in stored:
                raise InputError("two tensors would get this name", tensor=name)
            stored[name] = _hashed(part, name, digests)
    for layout in layouts.values():
        written.metadata += layout.position_bytes
    unknown = dict.fromkeys(stored, UNKNOWN)
    described = _description(layouts, unknown, 2**63, meant)
    own = {PLAN_KEY: plan_json(plan), HEADER_KEY: UNKNOWN, KEY: described}
    save_safetensors(path, stored, {**(metadata or {}), **own})
    _seal(path, _description(layouts, digests, written.negative_zeros, meant))
    return written


def _parts(
    tensor: NamedTensor, layout: Layout | None, written: Written
) -> dict[str, TensorToSave]:
    dtype = np.dtype(tensor.dtype)
    if layout is None:
        part = TensorToSave(dtype, tensor.shape, lambda: [tensor.read()])
        return {tensor.name: part}
    if tensor.zero_point is not None:
        raise InputError(
            "its zero is another code than 0, which this format cannot say; "
            "--exclude it",
            tensor=tensor.name,
        )
    pattern = layout.spec.pattern
    written.values += layout.slots * dtype.itemsize
    values = TensorToSave(
        dtype,
        (layout.groups, pattern.n),
        partial(_values, tensor, layout, written),
    )
    positions = TensorToSave(
        np.dtype(np.uint8),
        (layout.position_bytes,),
        lambda: packed_positions(tensor.read(), layout),
    )
    return {tensor.name + VALUES: values, tensor.name + POSITIONS: positions}


def _values(tensor: NamedTensor, layout: Layout, written: Written) -> Iterator[Array]:
    for chunk, dropped in kept_values(tensor.read(), layout):
        written.negative_zeros += dropped
        yield chunk


def _hashed(part: TensorToSave, name: str, digests: dict[str, str]) -> TensorToSave:
    """The same part, its checksum noted when all of it was written."""

    def chunks() -> Iterable[Array]:
        digest = hashlib.sha256()
        for chunk in part.chunks():
            digest.update(raw_bytes(chunk).data)
            yield chunk
        digests[name] = digest.hexdigest()

    return TensorToSave(part.dtype, part.shape, chunks)


def raw_bytes(array: Array) -> Array:
    """The bytes of an array in row-major order."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _description(
    layouts: Mapping[str, Layout],
    digests: Mapping[str, str],
    zeros: int,
    codes: Mapping[str, Mapping[str, str]],
) -> str:
    document: dict[str, Any] = {
        "schema": WITH_CODES if codes else SCHEMA,
        "shapes": {name: list(layouts[name].shape) for name in sorted(layouts)},
        "sha256": {name: digests[name] for name in sorted(digests)},
        "negative_zeros": zeros,
    }
    if codes:
        document["codes"] = codes
    return json.dumps(document, separators=(",", ":"))


def _seal(path: Path, description: str) -> None:
    """Put the checksums, known only now, where placeholders were written.

    The header must keep its length: spaces at the end of a JSON text mean nothing.
    """
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        metadata = header["__metadata__"]
        metadata[KEY] = description.ljust(len(metadata[KEY]))
        metadata[HEADER_KEY] = header_digest(header)
        sealed = packed_header(header)
        if len(sealed) != 8 + length:
            raise RuntimeError("the sealed header has another length")
        file.seek(0)
        file.write(sealed)


def header_digest(header: Mapping[str, Any]) -> str:
    """SHA-256 of all that a header holds, its own checksum apart."""
    checked = dict(header)
    checked["__metadata__"] = {
        key: text for key, text in header["__metadata__"].items() if key != HEADER_KEY
    }
    text = json.dumps(checked, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
