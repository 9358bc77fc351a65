from pathlib import Path

import pytest

from step_cli.commands.export.other_machine import trtexec_line
from step_cli.errors import UsageError
from step_cli.formats.onnx.inputs import GraphInput
from step_cli.formats.tensorrt.profiles import Profile, make_profiles, parse_shapes

IDS = GraphInput("ids", "int64", ("batch", "seq"))
IMAGE = GraphInput("x", "float32", (1, 3, 32, 32))


def test_the_three_shapes_become_a_profile() -> None:
    given = {"min": ["ids:1x1"], "opt": ["ids:8,64"], "max": ["ids:16x128"]}
    expected = [Profile("ids", ((1, 1), (8, 64), (16, 128)))]
    assert make_profiles([IDS, IMAGE], given) == expected


def test_one_shape_stands_for_all_three() -> None:
    expected = [Profile("ids", ((8, 64), (8, 64), (8, 64)))]
    assert make_profiles([IDS], {"opt": ["ids:8x64"]}) == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "input ids:int64:batch,seq has a dynamic size"),
        ({"opt": ["ids:0x4"]}, "expected NAME:SHAPE"),
        ({"opt": ["ids"]}, "expected NAME:SHAPE"),
        ({"opt": ["idz:1x4"]}, "no input idz; the model has ids:int64:batch,seq"),
        ({"opt": ["ids:1x4x4"]}, "1x4x4 does not fit input ids"),
        ({"min": ["ids:9x4"], "opt": ["ids:8x4"]}, "expected min <= opt <= max"),
        ({"opt": ["ids:8x4"], "max": ["ids:8x3"]}, "expected min <= opt <= max"),
        ({"opt": ["x:2x3x32x32", "ids:1x1"]}, "2x3x32x32 does not fit input x"),
    ],
)
def test_shapes_that_do_not_fit_are_usage_errors(
    given: dict[str, list[str]], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        make_profiles([IDS, IMAGE], given)


def test_an_input_given_twice_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="--opt: an input is given twice"):
        parse_shapes({"min": ["x:1x4"], "opt": ["x:2x4", "x:3x4"]})


def test_trtexec_line_is_one_quoted_command() -> None:
    line = trtexec_line(
        Path("my model.onnx"),
        Path("m.plan"),
        profiles=[Profile("ids", ((1, 1), (8, 64), (16, 128)))],
        workspace_mib=512,
    )
    assert line == (
        "trtexec '--onnx=my model.onnx' --saveEngine=m.plan --sparsity=enable "
        "--stronglyTyped --verbose --skipInference --profilingVerbosity=detailed "
        "--exportLayerInfo=m.plan.layers.json --minShapes=ids:1x1 --optShapes=ids:8x64 "
        "--maxShapes=ids:16x128 --memPoolSize=workspace:512"
    )
