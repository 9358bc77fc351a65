import pytest

from step_cli.errors import UsageError
from step_cli.formats.onnx.inputs import GraphInput, parse_input


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ids:int64:batch,seq", GraphInput("ids", "int64", ("batch", "seq"))),
        ("x:float32:1x3x32x32", GraphInput("x", "float32", (1, 3, 32, 32))),
        ("x:float16:batch,3,32", GraphInput("x", "float16", ("batch", 3, 32))),
        ("x:float32:8", GraphInput("x", "float32", (8,))),
        ("a:b:bool:max_len", GraphInput("a:b", "bool", ("max_len",))),
    ],
)
def test_an_input_is_name_dtype_and_shape(text: str, expected: GraphInput) -> None:
    assert parse_input(text) == expected
    assert expected.dynamic == any(isinstance(size, str) for size in expected.shape)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x", "expected NAME:DTYPE:SHAPE"),
        ("x:float32", "expected NAME:DTYPE:SHAPE"),
        (":float32:1", "expected NAME:DTYPE:SHAPE"),
        ("x:float32:", "expected NAME:DTYPE:SHAPE"),
        ("x:half:1x2", "no dtype half; use float32"),
        ("x:float32:0x2", "sizes above 0 or names"),
        ("x:float32:1,-2", "sizes above 0 or names"),
        ("x:float32:1,,2", "sizes above 0 or names"),
        ("x:float32:1x2y", "sizes above 0 or names"),
    ],
)
def test_other_texts_are_usage_errors(text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        parse_input(text)
