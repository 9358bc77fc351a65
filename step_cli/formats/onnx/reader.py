"""An ONNX model as a list of named arrays, weights with their group axes."""

from functools import partial

import numpy as np

from step_cli.errors import InputError
from step_cli.formats.checkpoint import Checkpoint, NamedTensor, ZeroPoint
from step_cli.formats.files.mapped_file import MappedFile
from step_cli.formats.onnx.data import TensorData, dtype_name
from step_cli.formats.onnx.graph import Model, ModelReader, Node, Tensor
from step_cli.formats.onnx.protobuf import WireError
from step_cli.formats.onnx.weight_uses import Scope, Use, scopes_of, uses_in
from step_cli.formats.plan import KEY, parse_plan
from step_cli.nm.weight_rule import SkipReason


def open_onnx(file: MappedFile) -> Checkpoint:
    """The checkpoint in an ONNX file, its external data included.

    Raises:
        InputError: It is no ONNX model, or an extent or location does not hold.
    """
    try:
        model = ModelReader(file.data.data).model()
        data = TensorData(file)
        tensors, notes = _tensors(model, data)
    except WireError as error:
        raise InputError(f"not an ONNX model: {error}", file=file.path) from None
    text = model.properties.get(KEY)
    return Checkpoint(
        file.path,
        "onnx",
        tensors,
        None if text is None else parse_plan(text, file=file.path),
        notes,
        (file.path, *(part.path for part in data.external.values())),
    )


def _tensors(
    model: Model, data: TensorData
) -> tuple[list[NamedTensor], tuple[str, ...]]:
    """All initializers, and the Constants that are weights, each once; and notes."""
    scopes = scopes_of(model)
    uses: dict[int, Use] = {}
    ambiguous: dict[str, None] = {}
    for use in (use for scope in scopes for use in uses_in(scope)):
        first = uses.setdefault(id(use.tensor), use)
        if first.axis != use.axis:
            ambiguous[use.tensor.name] = None
    found: dict[str, NamedTensor] = {}
    listed: set[int] = set()
    for scope in scopes:
        for tensor in scope.graph.initializers:
            _add(found, tensor, uses.get(id(tensor)), scope, data)
        listed |= {id(tensor) for tensor in scope.graph.initializers}
        for tensor in scope.stored.values():
            if id(tensor) in uses and id(tensor) not in listed:
                listed.add(id(tensor))  # a function may be called again
                _add(found, tensor, uses[id(tensor)], scope, data)
        for tensor in scope.graph.sparse:
            found[tensor.name] = _named(tensor.name, tensor, data, skip="kind")
    notes = tuple(
        f"{name} is multiplied along two axes; judged along that of its first node"
        for name in ambiguous
    )
    return list(found.values()), notes


def _add(
    found: dict[str, NamedTensor],
    tensor: Tensor,
    use: Use | None,
    scope: Scope,
    data: TensorData,
) -> None:
    name = tensor.name
    while name in found:  # the branches of an If may use the same name
        name = f"{scope.graph.name or 'graph'}/{name}"
    if use is None:
        found[name] = _named(name, tensor, data, skip="consumer")
        return
    zero, readable = _zero_point(use, data)
    found[name] = _named(
        name,
        tensor,
        data,
        skip=None if readable else "kind",
        is_weight=True,
        axis=use.axis,
        zero_point=zero,
    )


def _named(
    name: str,
    tensor: Tensor,
    data: TensorData,
    *,
    skip: SkipReason | None = None,
    is_weight: bool = False,
    axis: int | None = None,
    zero_point: ZeroPoint | None = None,
) -> NamedTensor:
    return NamedTensor(
        name=name,
        dtype=dtype_name(tensor),
        shape=tuple(tensor.shape),
        read=partial(data.read, tensor),
        axis=axis,
        skip=skip,
        is_weight=is_weight,
        zero_point=zero_point,
        place=data.place(tensor),
    )


def _zero_point(use: Use, data: TensorData) -> tuple[ZeroPoint | None, bool]:
    """Which code means zero, and whether the codes have a meaning at all."""
    node = use.dequantize
    if node is None or "int" not in dtype_name(use.tensor):
        return None, True
    name = node.inputs[2] if len(node.inputs) > 2 else ""
    if not name:
        return ZeroPoint(np.zeros((), np.int8)), True
    stored, at = use.scope.find(name)
    for _ in range(1000):  # a name may lead back to itself
        if not (isinstance(stored, Node) and stored.op_type == "Identity"):
            break
        stored, at = at.find(stored.inputs[0] if stored.inputs else "")
    if not isinstance(stored, Tensor):
        return None, False  # computed: not known here
    codes = data.read(stored)
    if codes.size == 0:
        return None, False
    if (codes == codes.flat[0]).all():
        return ZeroPoint(codes.reshape(-1)[0]), True
    attribute = node.attributes.get("axis")
    axis = 1 if attribute is None or attribute.integer is None else attribute.integer
    rank = len(use.tensor.shape)
    if codes.ndim != 1 or not -rank <= axis < rank:
        return None, False  # one for each block
    stored_axis = use.code_axes[axis]
    if codes.shape[0] != use.tensor.shape[stored_axis]:
        raise InputError(
            f"{codes.shape[0]} zero points for {use.tensor.shape[stored_axis]} slices",
            file=data.file.path,
            tensor=use.tensor.name,
        )
    return ZeroPoint(codes, stored_axis), True
