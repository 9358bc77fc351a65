"""An ONNX model as a list of named arrays, weights with their group axes."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from step_cli.errors import InputError, naming
from step_cli.formats.checkpoint import Checkpoint, NamedTensor, Quantized
from step_cli.formats.files.mapped_file import MappedFile
from step_cli.formats.onnx.data import TensorData, dtype_name
from step_cli.formats.onnx.graph import ModelReader
from step_cli.formats.onnx.model import Model, Tensor
from step_cli.formats.onnx.other_uses import other_uses
from step_cli.formats.onnx.protobuf import WireError
from step_cli.formats.onnx.quantized_names import plan_of_codes
from step_cli.formats.onnx.weight_uses import uses_of
from step_cli.formats.onnx.weights.boxes import parts_of
from step_cli.formats.onnx.weights.scales import CODES, tensor_scales
from step_cli.formats.onnx.weights.scopes import Scope
from step_cli.formats.onnx.weights.use import Use
from step_cli.formats.onnx.weights.zero_points import Meaning, zero_point_of
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
        with naming(file=file.path):
            tensors, notes = _tensors(model, data)
    except WireError as error:
        raise InputError(f"not an ONNX model: {error}", file=file.path) from None
    text = model.properties.get(KEY)
    plan = None if text is None else parse_plan(text, file=file.path)
    if plan is not None:
        plan, more = plan_of_codes(plan, tensors)
        notes = (*notes, *more)
    return Checkpoint(
        file.path,
        "onnx",
        tensors,
        plan,
        notes,
        (file.path, *(part.path for part in data.external.values())),
    )


def _tensors(
    model: Model, data: TensorData
) -> tuple[list[NamedTensor], tuple[str, ...]]:
    """All initializers, and the Constants that products use; and notes.

    A tensor that products sum over two axes of is there twice, once for each.
    """
    uses = uses_of(model, data.read)
    by_tensor: dict[int, list[Use]] = {}
    for use in uses.products:
        by_tensor.setdefault(id(use.tensor), []).append(use)
    shared = other_uses(uses)
    found: list[NamedTensor] = []
    notes: list[str] = []
    names: set[str] = set()
    listed: set[int] = set()
    for scope in uses.scopes:
        own = {id(tensor) for tensor in scope.graph.initializers + scope.graph.sparse}
        for tensor in scope.stored.values():
            used = by_tensor.get(id(tensor), [])
            untraced = id(tensor) in uses.untraced
            if id(tensor) in listed or not (id(tensor) in own or used or untraced):
                continue  # a function may be called again
            listed.add(id(tensor))
            plain = _named(_free_name(tensor, scope, names), tensor, data)
            names.add(plain.name)
            layers = _layers(plain, tensor, used, shared.get(id(tensor)))
            if len(layers) > 1:
                axes = " and ".join(str(layer.axis) for layer in layers)
                notes.append(f"{plain.name} is summed over axes {axes}; each is judged")
            found += layers
            if untraced and layers:  # what one product uses is judged, the rest is not
                found.append(replace(layers[0], axis=None, parts=(), skip="untraced"))
            elif not layers:
                skip: SkipReason = "untraced" if untraced else "consumer"
                found.append(replace(plain, skip=skip))
    return found, tuple(notes)


def _free_name(tensor: Tensor, scope: Scope, taken: set[str]) -> str:
    name = tensor.name
    while name in taken:  # the branches of an If may use the same name
        name = f"{scope.graph.name or 'graph'}/{name}"
    return name


def _layers(
    plain: NamedTensor, tensor: Tensor, uses: Sequence[Use], shared: str | None
) -> list[NamedTensor]:
    """A stored tensor as products use it, once for each axis that they sum over."""
    by_axis: dict[int | None, list[Use]] = {}
    for use in uses:
        by_axis.setdefault(use.axis, []).append(use)
    if len(by_axis) > 1:
        by_axis.pop(None, None)  # as a vector it has no groups
    layers: list[NamedTensor] = []
    for axis, some in by_axis.items():
        boxes = [box for use in some for box in use.boxes]
        parts = () if axis is None else parts_of(tensor.shape, axis, boxes)
        zero, known = zero_point_of(tensor, [(use.meaning, use.boxes) for use in some])
        skip: SkipReason | None = None if known else "kind"
        if axis is None or parts is None:
            skip = "rank" if axis is None else "untraced"
        layers.append(
            replace(
                plain,
                axis=axis,
                output_axis=some[0].outputs,
                parts=parts or (),
                skip=skip,
                is_weight=True,
                shared_with=shared,
                zero_point=zero,
                quantized=_quantized(tensor, [use.meaning for use in some]),
            )
        )
    return layers


def _quantized(tensor: Tensor, meanings: Sequence[Meaning]) -> Quantized | None:
    """What the codes of a tensor stand for; None if it holds plain numbers."""
    if tensor.data_type not in CODES:
        return None
    found = tensor_scales(tensor, meanings)
    given = all(meaning.zero_given for meaning in meanings)
    return Quantized(found.scales, found.axes, given)


def _named(name: str, tensor: Tensor, data: TensorData) -> NamedTensor:
    return NamedTensor(
        name=name,
        dtype=dtype_name(tensor),
        shape=tuple(tensor.shape),
        read=partial(data.read, tensor),
        place=data.place(tensor),
    )
