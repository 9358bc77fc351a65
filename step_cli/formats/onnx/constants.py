"""The tensors that Constant nodes make of numbers in their attributes."""

from step_cli.formats.onnx.graph import MOST_PARTS
from step_cli.formats.onnx.model import Attribute, Tensor
from step_cli.formats.onnx.protobuf import Field, WireError, fields

# Fields of AttributeProto with numbers: type and field of a TensorProto of them, and
# whether it is a list.
_FLOAT, _INT64 = 1, 7
_NUMBERS = {
    2: (_FLOAT, 4, False),
    3: (_INT64, 7, False),
    7: (_FLOAT, 4, True),
    8: (_INT64, 7, True),
}


def numbers_tensor(attribute: Attribute, data: memoryview) -> Tensor:
    """The tensor that a Constant makes of numbers that stand in its attribute.

    Args:
        attribute: ``value_float``, ``value_floats``, ``value_int`` or ``value_ints``;
            keeps the tensor.
        data: The file.

    Raises:
        WireError: It holds no numbers, or too many.
    """
    if attribute.tensor is not None:
        return attribute.tensor
    assert attribute.place is not None
    found: list[Field] = []
    for item in fields(data, attribute.place.begin, attribute.place.end):
        if item.number in _NUMBERS:
            found.append(item)
        if len(found) > MOST_PARTS:
            raise WireError(f"an attribute of more than {MOST_PARTS} numbers")
    if len({item.number for item in found}) != 1:
        raise WireError(f"the attribute {attribute.name!r} of a Constant has no value")
    data_type, typed, many = _NUMBERS[found[0].number]
    count = len(attribute.integers)
    if data_type == _FLOAT:
        count = sum(item.end - item.begin for item in found) // 4
    shape = [count] if many else []
    tensor = Tensor(shape=shape, data_type=data_type, typed={typed: found})
    attribute.tensor = tensor
    return tensor
