"""An ONNX model with some weights changed in place, and its plan in metadata_props.

The model is copied byte for byte around the changes. Where a message gets longer, the
lengths of all messages around it are written anew.
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from step_cli.formats.files.mapped_file import MappedFile, map_file
from step_cli.formats.files.patched_copy import (
    Change,
    Splice,
    copy_patched,
    in_file,
    replaced,
    splice_of,
)
from step_cli.formats.onnx.graph import ModelReader
from step_cli.formats.onnx.model import Graph, Model, Tensor
from step_cli.formats.onnx.protobuf import Field, encoded_varint
from step_cli.formats.onnx.weight_uses import nodes_of_weights
from step_cli.formats.plan import KEY, plan_json
from step_cli.nm.pattern import Plan

_PROPERTIES, _EXTERNAL_DATA = 14, 13  # fields of ModelProto and of TensorProto
CHECKSUM = "checksum"  # of external data: the SHA-1 of the whole file


def external_locations(file: MappedFile) -> list[str]:
    """The data files that a model names, in the order of first use."""
    found: dict[str, None] = {}
    for tensor in _all_tensors(ModelReader(file.data.data).model()):
        if tensor.is_external:
            found[tensor.external.get("location", "")] = None
    return list(found)


def with_checksums(file: MappedFile) -> set[str]:
    """The data files of which a model records the SHA-1."""
    return {
        tensor.external.get("location", "")
        for tensor in _all_tensors(ModelReader(file.data.data).model())
        if tensor.is_external and CHECKSUM in tensor.external
    }


def sha1_of(path: Path) -> str:
    """The checksum that ONNX records of external data."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha1").hexdigest()


def rewrite_onnx(
    source: MappedFile,
    target: Path,
    changes: Sequence[Change],
    plan: Plan,
    renamed: Mapping[str, str],
    digests: Mapping[str, str],
) -> None:
    """Write the model file ``source`` to ``target``.

    Args:
        source: The model that was read.
        target: The file to write.
        changes: Those of other files, such as external data, are ignored.
        plan: For the model's metadata, in its own names and axes.
        renamed: The new location of each external data file.
        digests: The new SHA-1 of each of those whose data changes.

    Raises:
        OutputError: What was written does not read back.
    """
    model = ModelReader(source.data.data).model()
    splices = [splice_of(change) for change in in_file(changes, source)]
    splices += _plan_splices(model, source, plan)
    splices += _external_splices(model, renamed, digests)
    copy_patched(source, target, splices)


def relocate_data(path: Path, renamed: Mapping[str, str]) -> None:
    """Have the model file ``path`` look for its weights in other files beside it.

    Args:
        path: Changed, unless nothing is renamed.
        renamed: The new location of each external data file.
    """
    if renamed:
        source = map_file(path)
        model = ModelReader(source.data.data).model()
        beside = path.with_name(f"{path.name}.relocated")
        try:
            copy_patched(source, beside, _external_splices(model, renamed, {}))
            os.rename(beside, path)
        finally:
            beside.unlink(missing_ok=True)


def save_dense_twin(source: Path, target: Path) -> None:
    """Write ``source`` to ``target`` with every zero of its weights made small."""
    import onnx
    from onnx import numpy_helper

    model = onnx.load(str(source))
    weights = nodes_of_weights(source)
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            values = numpy_helper.to_array(tensor)
            small = 1 if values.dtype.kind in "iu" else 1e-3
            dense = np.where(values == 0, np.asarray(small, values.dtype), values)
            tensor.CopyFrom(numpy_helper.from_array(dense, tensor.name))
    data = f"{target.name}.data"
    onnx.save(model, str(target), save_as_external_data=True, location=data)


def _all_tensors(model: Model) -> list[Tensor]:
    """Every tensor of a model, and of its functions."""
    graphs = [model.graph, *(function.graph for function in model.functions)]
    return [tensor for graph in graphs for tensor in _tensors_in(graph)]


def _tensors_in(graph: Graph) -> list[Tensor]:
    """Every tensor of a graph and of those within it."""
    found = [*graph.initializers]
    found += [one for sparse in graph.sparse for one in sparse.stored]
    for node in graph.nodes:
        for attribute in node.attributes.values():
            if attribute.tensor is not None:
                found += attribute.tensor.stored
            for inner in attribute.graphs:
                found += _tensors_in(inner)
    return found


def _plan_splices(model: Model, source: MappedFile, plan: Plan) -> list[Splice]:
    """The old plan removed, and the new one as the last field of the model."""
    entry = _pair(_PROPERTIES, KEY, plan_json(plan))
    added = replaced(source.size, source.size, entry)
    old = model.property_fields.get(KEY)
    return [added] if old is None else [replaced(*old, b""), added]


def _external_splices(
    model: Model, renamed: Mapping[str, str], digests: Mapping[str, str]
) -> list[Splice]:
    """New locations and checksums, and the lengths of the messages around them."""
    edits = [
        (tensor, key, new[location])
        for tensor in _all_tensors(model)
        for key, new in (("location", renamed), (CHECKSUM, digests))
        if (location := tensor.external.get("location", "")) in new
        if key in tensor.external
    ]
    splices: list[Splice] = []
    grown: dict[Field, int] = {}  # bytes that each message around an edit gains
    for tensor, key, value in edits:
        begin, end = tensor.external_at[key]
        entry = _pair(_EXTERNAL_DATA, key, value)
        splices.append(replaced(begin, end, entry))
        for message in tensor.around:
            grown.setdefault(message, 0)
        grown[tensor.around[-1]] += len(entry) - (end - begin)
    parents = {
        message: around
        for tensor, *_ in edits
        for around, message in pairwise(tensor.around)
    }
    # Innermost first: a longer length makes the message around it longer as well.
    for message in sorted(grown, key=lambda message: message.begin, reverse=True):
        begin = _length_at(message)
        length = encoded_varint(message.end - message.begin + grown[message])
        splices.append(replaced(begin, message.begin, length))
        if message in parents:
            gained = grown[message] + len(length) - (message.begin - begin)
            grown[parents[message]] += gained
    return splices


def _length_at(message: Field) -> int:
    """Where the length of a message stands: behind its tag."""
    return message.start + len(encoded_varint(message.number << 3 | message.wire))


def _pair(number: int, key: str, value: str) -> bytes:
    """A field that holds a StringStringEntryProto."""
    body = _text(1, key) + _text(2, value)
    return encoded_varint(number << 3 | 2) + encoded_varint(len(body)) + body


def _text(number: int, text: str) -> bytes:
    raw = text.encode()
    return encoded_varint(number << 3 | 2) + encoded_varint(len(raw)) + raw
