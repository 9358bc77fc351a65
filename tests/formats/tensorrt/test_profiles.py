from pathlib import Path

import pytest

from step_cli.commands.export.other_machine import trtexec_line
from step_cli.errors import UsageError
from step_cli.formats.onnx.inputs import GraphInput
from step_cli.formats.tensorrt.profiles import (
    Profile,
    default_note,
    make_profiles,
    parse_shapes,
)

IDS = GraphInput("ids", "int64", ("batch", "seq"))
IMAGE = GraphInput("x", "float32", (1, 3, 32, 32))


def test_the_three_shapes_become_a_profile() -> None:
    given = {"min": ["ids:1x1"], "opt": ["ids:8,64"], "max": ["ids:16x128"]}
    expected = [Profile("ids", ((1, 1), (8, 64), (16, 128)))]
    assert make_profiles([IDS, IMAGE], given) == expected


def test_one_shape_stands_for_all_three() -> None:
    expected = [Profile("ids", ((8, 64), (8, 64), (8, 64)))]
    assert make_profiles([IDS], {"opt": ["ids:8x64"]}) == expected


MASK = GraphInput("mask", "int64", ("batch", "seq"))
NO_SHAPES = {"min": [], "opt": [], "max": []}


def test_sizes_that_nobody_gives_are_1_8_32_items_of_up_to_the_longest_length() -> None:
    shapes = ((1, 1), (8, 32), (32, 128))
    profiles = make_profiles([IDS, IMAGE, MASK], NO_SHAPES, longest=128)
    assert profiles == [Profile(name, shapes, True) for name in ("ids", "mask")]
    items = GraphInput("x", "float32", ("n", 3, 32, 32))
    (profile,) = make_profiles([items], NO_SHAPES)
    assert [shape[0] for shape in profile.shapes] == [1, 8, 32]
    assert {shape[1:] for shape in profile.shapes} == {(3, 32, 32)}
    (shortest,) = make_profiles([IDS], NO_SHAPES, longest=2)
    assert [shape[1] for shape in shortest.shapes] == [1, 1, 2]
    note = default_note(profiles)
    assert note is not None
    assert "(smallest, most common, largest): ids 1x1, 8x32, 32x128; mask 1x1" in note
    assert "--min ids:SHAPE" in note


def test_an_input_takes_the_sizes_that_another_was_given_for_the_same_name() -> None:
    given = {"opt": ["mask:4x16"], "max": ["mask:8x16"]}
    ids, mask = make_profiles([IDS, MASK], given, longest=128)
    assert ids.shapes == mask.shapes == ((4, 16), (4, 16), (8, 16))
    assert (ids.is_default, mask.is_default) == (True, False)
    assert default_note([mask]) is None


def test_a_length_that_no_config_says_is_asked_for() -> None:
    with pytest.raises(UsageError, match=r"no config\.json says how large seq"):
        make_profiles([IDS], NO_SHAPES)


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
