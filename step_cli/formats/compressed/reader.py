"""Read a compressed checkpoint as if it were dense: decompressed tensor by tensor.

Checksums of header and data are checked when it is opened, positions when read.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from step_cli.formats.checkpoint import Checkpoint, NamedTensor
from step_cli.formats.compressed.codec import (
    Array,
    BadPositionsError,
    Layout,
    decode,
)
from step_cli.formats.compressed.codes import checked_scales
from step_cli.formats.compressed.flaws import CompressedFileError, Flaw
from step_cli.formats.compressed.writer import (
    HEADER_KEY,
    POSITIONS,
    SCHEMA,
    VALUES,
    WITH_CODES,
    header_digest,
)
from step_cli.formats.files.mapped_file import MappedFile
from step_cli.formats.plan import KEY as PLAN_KEY
from step_cli.formats.plan import parse_plan
from step_cli.formats.safetensors.header import COMPRESSED_KEY as KEY
from step_cli.formats.safetensors.header import Entry, Header
from step_cli.formats.safetensors.reader import read_entry, tensors_of
from step_cli.nm.pattern import Plan


@dataclass(frozen=True)
class Description:
    """What a compressed file holds on its compressed tensors."""

    shapes: dict[str, tuple[int, ...]]
    sha256: dict[str, str]
    negative_zeros: int
    codes: dict[str, tuple[str, str]] | None = None  # type and scale; from version 2 on


def open_compressed(file: MappedFile, header: Header) -> Checkpoint:
    """The checkpoint in a compressed file; its tensors read as dense ones.

    Raises:
        CompressedFileError: Anything in it is not as `save_compressed` writes it.
    """
    description = read_description(file, header)
    plan = parse_plan(header.metadata.get(PLAN_KEY, "{}"), file=file.path)
    entries = {entry.name: entry for entry in header.entries}
    _check_data(file, entries, description)
    dense = {tensor.name: tensor for tensor in tensors_of(file, header)}
    layers = []
    for name, shape in description.shapes.items():
        layers.append(_layer(name, shape, plan, entries, file))
        for part in (VALUES, POSITIONS):
            del dense[name + part]
    tensors = sorted([*dense.values(), *layers], key=lambda tensor: tensor.name)
    scales = None
    if description.codes is not None:
        scales = checked_scales(description.codes, tensors, plan, file.path)
    return Checkpoint(
        file.path,
        "compressed",
        tensors,
        plan,
        files=(file.path,),
        integrity="sha256",
        compressed=True,
        metadata=header.user_metadata,
        negative_zeros=description.negative_zeros,
        scales=scales,
    )


def read_description(file: MappedFile, header: Header) -> Description:
    """The description in the header, its schema and the header's checksum checked."""
    try:
        document = json.loads(header.metadata[KEY])
        schema = str(document["schema"])
        shapes = {
            name: tuple(int(size) for size in shape)
            for name, shape in document["shapes"].items()
        }
        sha256 = {name: str(digest) for name, digest in document["sha256"].items()}
        codes = None
        if schema == WITH_CODES:
            codes = {
                name: (str(meant["type"]), str(meant["scale"]))
                for name, meant in document["codes"].items()
            }
        found = Description(shapes, sha256, int(document["negative_zeros"]), codes)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise CompressedFileError(Flaw.NOT_A_DESCRIPTION, file=file.path) from None
    version = re.fullmatch(r"step-cli/compressed/([0-9]{1,9})", schema)
    if version is None:
        raise CompressedFileError(Flaw.NOT_A_DESCRIPTION, file=file.path)
    if schema not in (SCHEMA, WITH_CODES):
        raise CompressedFileError(Flaw.NEWER, file=file.path, found=schema)
    if header.metadata.get(HEADER_KEY) != header_digest(_raw_header(file)):
        raise CompressedFileError(Flaw.HEADER_CHANGED, file=file.path)
    return found


def _raw_header(file: MappedFile) -> dict[str, Any]:
    length = int.from_bytes(file.head(8), "little")
    header: dict[str, Any] = json.loads(file.data[8 : 8 + length].tobytes())
    return header


def _check_data(
    file: MappedFile, entries: Mapping[str, Entry], description: Description
) -> None:
    for name, entry in entries.items():
        if name not in description.sha256:
            raise CompressedFileError(Flaw.NO_CHECKSUM, file=file.path, tensor=name)
        digest = hashlib.sha256(file.data[entry.begin : entry.end].data).hexdigest()
        if digest != description.sha256[name]:
            raise CompressedFileError(Flaw.DATA_CHANGED, file=file.path, tensor=name)


def _layer(
    name: str,
    shape: tuple[int, ...],
    plan: Plan,
    entries: Mapping[str, Entry],
    file: MappedFile,
) -> NamedTensor:
    layout = _layout(name, shape, plan, file)
    values, positions = (
        _part(name, part, entries, file) for part in (VALUES, POSITIONS)
    )
    if name in entries:
        raise CompressedFileError(Flaw.PART_TWICE, file=file.path, tensor=name)
    pattern = layout.spec.pattern
    if values.shape != (layout.groups, pattern.n):
        raise CompressedFileError(
            Flaw.VALUES_DISAGREE,
            file=file.path,
            tensor=name,
            slots=layout.slots,
            pattern=pattern,
            found=list(values.shape),
        )
    if positions.code != "U8" or positions.shape != (layout.position_bytes,):
        raise CompressedFileError(
            Flaw.POSITIONS_DISAGREE,
            file=file.path,
            tensor=name,
            needed=layout.position_bytes,
            found=positions.end - positions.begin,
        )
    read = partial(_read, name, layout, values, positions, file)
    return NamedTensor(name, values.dtype.name, shape, read)


def _layout(name: str, shape: tuple[int, ...], plan: Plan, file: MappedFile) -> Layout:
    layer = plan.get(name)
    if layer is None or layer.pattern.dense:
        raise CompressedFileError(Flaw.NO_PLAN, file=file.path, tensor=name)
    whole = 0 <= layer.axis < len(shape) and min(shape) > 0
    if not whole or shape[layer.axis] % layer.pattern.m:
        raise CompressedFileError(
            Flaw.BAD_SHAPE,
            file=file.path,
            tensor=name,
            shape=list(shape),
            pattern=layer.pattern,
            axis=layer.axis,
        )
    return Layout(shape, layer)


def _part(
    name: str, part: str, entries: Mapping[str, Entry], file: MappedFile
) -> Entry:
    entry = entries.get(name + part)
    if entry is None:
        what = "kept values" if part == VALUES else "positions"
        raise CompressedFileError(
            Flaw.PART_MISSING, file=file.path, tensor=name, part=what
        )
    return entry


def _read(
    name: str, layout: Layout, values: Entry, positions: Entry, file: MappedFile
) -> Array:
    try:
        dense = decode(
            read_entry(file, values).reshape(-1), read_entry(file, positions), layout
        )
    except BadPositionsError as error:
        raise CompressedFileError(
            Flaw.BAD_POSITIONS, file=file.path, tensor=name, found=error
        ) from None
    dense.flags.writeable = False
    return dense
