"""When a library may run a layer sparse: the rows of the table, each both ways."""

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

from step_cli.nm.count import TensorToCheck
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.nm.selection import Layer
from step_cli.nm.target_table import TARGETS, TargetName
from step_cli.nm.targets import (
    Operand,
    View,
    implies,
    implies_two_four,
    operand_of,
    planned_view,
    view_of,
)
from step_cli.nm.tensor_data import Part, TensorData
from step_cli.nm.weight_rule import Description

BYTES = {"float32": 4, "int8": 1, "float8_e4m3fn": 1, "float8_e5m2": 1}


def given(
    shape: tuple[int, ...],
    dtype: str,
    axis: int,
    nm: str,
    kept: tuple[int, ...] = (0, 1),
    of: int = 4,
) -> TensorToCheck:
    """Ones at the places ``kept`` of each ``of`` along ``axis``, zeros else."""
    array = np.zeros(shape, f"u{BYTES.get(dtype, 1 if 'float4' in dtype else 2)}")
    where: list[slice] = [slice(None)] * len(shape)
    for start in kept:
        where[axis] = slice(start, None, of)
        array[tuple(where)] = 1
    return TensorToCheck(TensorData(array, dtype), NMSpec(NMPattern.parse(nm), axis))


def view(
    shape: tuple[int, ...], dtype: str = "float16", axis: int = 1, nm: str = "2:4"
) -> View:
    """TensorRT's view of a layer with two ones in each group along ``axis``."""
    data = given(shape, dtype, axis, nm)
    layer = Layer.alone(Description("fc.weight", dtype, shape), data.spec)
    return view_of("tensorrt", operand_of(layer), data, holds=True)


def seen_by(target: TargetName, shape: tuple[int, ...], dtype: str) -> View:
    """A target's view of a matrix, or a convolution, that holds 1:2 and so 2:4, too."""
    operand = Operand(dtype, shape, inputs=1, outputs=0)
    data = given(shape, dtype, 1, "1:2", kept=(0,), of=2)
    return view_of(target, operand, data, holds=True)


def test_a_large_layer_in_half_precision_is_likely() -> None:
    assert view((512, 256)) == View(True, True, None)
    assert view((512, 256, 3, 3)) == View(True, True, None)


@pytest.mark.parametrize(
    ("found", "advice"),
    [
        (view((512, 128)), "128 channels in, 512 out"),
        (view((520, 256)), "multiples of 16"),
        (view((512, 256, 3, 3), "bfloat16"), "bf16 convolution"),
        (view((512, 256), "int8"), "output quantizer"),
        (view((512, 256, 3, 3), "int8"), "output quantizer"),
        (view((512, 256), "float8_e4m3fn"), "8.9"),
    ],
)
def test_possible_but_unlikely(found: View, advice: str) -> None:
    assert (found.possible, found.likely) == (True, False)
    assert advice in (found.advice or "")


@pytest.mark.parametrize(
    ("found", "advice"),
    [
        (view((512, 256), "float32"), "float32"),
        (view((256, 512), axis=0), "not 2:4 along axis 1"),
        (view((512, 258), axis=0), "258 input channels"),
    ],
)
def test_not_possible(found: View, advice: str) -> None:
    assert not found.possible and not found.likely
    assert advice in (found.advice or "")


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8", "float8_e4m3fn"])
def test_2_4_in_sixteen_and_eight_bits_everywhere(
    target: TargetName, dtype: str
) -> None:
    operand = Operand(dtype, (512, 512), inputs=1, outputs=0, int8_output=True)
    good = view_of(target, operand, given((512, 512), dtype, 1, "2:4"), holds=True)
    assert good.possible
    dense = given((512, 512), dtype, 1, "4:4", kept=(0, 1, 2, 3))
    bad = view_of(target, operand, dense, holds=True)
    assert not bad.possible and "not 2:4" in (bad.advice or "")


@pytest.mark.parametrize("target", TARGETS)
def test_float32_is_1_2_through_tf32_or_nothing(target: TargetName) -> None:
    found = seen_by(target, (512, 512), "float32")
    assert found.possible == (target in ("cusparselt", "torch"))
    assert ("TF32" in (found.advice or "")) == found.possible
    operand = Operand("float32", (512, 512), inputs=1, outputs=0)
    two_four = given((512, 512), "float32", 1, "2:4")
    assert not view_of(target, operand, two_four, holds=True).possible


@pytest.mark.parametrize(
    ("kept", "possible"), [((0, 1, 4, 5), True), ((0, 2, 4, 6), False)]
)
def test_fp4_is_4_8_in_pairs(kept: tuple[int, ...], possible: bool) -> None:
    shape, dtype = (512, 512), "float4_e2m1fn"
    operand = Operand(dtype, shape, inputs=1, outputs=0)
    data = given(shape, dtype, 1, "4:8", kept=kept, of=8)
    assert view_of("cusparselt", operand, data, holds=True).possible == possible
    assert not view_of("tensorrt", operand, data, holds=True).possible


def test_pairs_are_weights_beside_each_other() -> None:
    ones = np.ones((64, 64), ml_dtypes.float4_e2m1fn)
    ones[:, 2:4] = ones[:, 6:8] = ones[:, 1] = 0
    ones[:, 8:] = 0
    spec = NMSpec(NMPattern(4, 8), 1)
    operand = Operand("float4_e2m1fn", (64, 64), inputs=1, outputs=0)
    for extra, possible in ((0, True), (1, False)):  # in a third pair
        ones[5, 2] = extra
        data = TensorToCheck(TensorData(ones.view(np.uint8), "float4_e2m1fn"), spec)
        assert view_of("cusparselt", operand, data, holds=True).possible == possible


@pytest.mark.parametrize(
    ("target", "dtype", "inputs", "outputs"),
    [
        ("tensorrt", "float16", 4, 1),
        ("cusparselt", "float16", 16, 16),
        ("cusparselt", "float8_e5m2", 32, 32),
        ("cusparselt", "float32", 8, 8),
        ("hipsparselt", "bfloat16", 8, 8),
        ("hipsparselt", "int8", 16, 16),
        ("torch", "float16", 16, 16),
        ("torch", "float8_e4m3fn", 32, 32),
        ("torch", "float32", 32, 32),
    ],
)
def test_sizes(target: TargetName, dtype: str, inputs: int, outputs: int) -> None:
    assert seen_by(target, (3 * outputs, 5 * inputs), dtype).possible
    narrow = seen_by(target, (3 * outputs, 5 * inputs + inputs // 2), dtype)
    assert "input channels" in (narrow.advice or "") and not narrow.possible
    if outputs > 1:
        short = seen_by(target, (3 * outputs + outputs // 2, 5 * inputs), dtype)
        assert "outputs" in (short.advice or "") and not short.possible


def test_one_of_several_kernels_of_a_dtype_is_enough() -> None:
    assert seen_by("torch", (16, 128), "int8").possible
    assert not seen_by("torch", (16, 64), "int8").possible


@pytest.mark.parametrize(
    ("target", "window", "possible"),
    [
        ("tensorrt", 3, True),
        ("cusparselt", 3, False),
        ("cusparselt", 1, True),
        ("hipsparselt", 3, False),
        ("torch", 1, False),
    ],
)
def test_convolutions(target: TargetName, window: int, possible: bool) -> None:
    shape = (512, 512, window, window)
    assert seen_by(target, shape, "float16").possible == possible


@pytest.mark.parametrize("target", TARGETS)
def test_stacks_and_matrices_stored_the_other_way(target: TargetName) -> None:
    stack = Operand("float16", (2, 512, 512), inputs=1, outputs=2)
    data = given((2, 512, 512), "float16", 1, "2:4")
    assert view_of(target, stack, data, holds=True).possible == (target != "torch")
    turned = Operand("float16", (512, 512), inputs=0, outputs=1)
    data = given((512, 512), "float16", 0, "2:4")
    assert view_of(target, turned, data, holds=True).possible == (target != "torch")


@pytest.mark.parametrize("target", TARGETS)
def test_a_grouped_convolution_has_no_sparse_kernels(target: TargetName) -> None:
    operand = Operand("float16", (512, 512, 1, 1), inputs=1, outputs=0, groups=2)
    data = given((512, 512, 1, 1), "float16", 1, "2:4")
    assert not view_of(target, operand, data, holds=True).possible
    alone = view_of("tensorrt", replace(operand, groups=1), data, holds=True)
    assert alone.possible


def test_an_int8_layer_needs_an_output_quantizer_in_tensorrt() -> None:
    data = given((512, 512), "int8", 1, "2:4")
    for known, possible, likely in ((True, 1, 1), (None, 1, 0), (False, 0, 0)):
        operand = Operand("int8", (512, 512), 1, 0, int8_output=known)
        found = view_of("tensorrt", operand, data, holds=True)
        assert (found.possible, found.likely) == (possible, likely)
        assert view_of("cusparselt", operand, data, holds=True).likely


def test_the_width_of_the_outputs_is_that_of_their_axis() -> None:
    wide = Description("fc.weight", "float16", (4, 256, 512), axis=1, output_axis=2)
    spec = NMSpec(NMPattern(2, 4), 1)
    operand = operand_of(Layer.alone(wide, spec))
    assert (operand.inputs, operand.outputs, operand.windows) == (1, 2, ())
    turned = operand_of(Layer.alone(wide, NMSpec(NMPattern(2, 4), 2)))
    assert (turned.inputs, turned.outputs) == (1, 2)
    kernel = Description("conv.weight", "float16", (64, 32, 3))
    assert operand_of(Layer.alone(kernel, spec)).windows == (3,)


def test_of_parts_the_smallest_counts() -> None:
    parts = (Part((0, 0), (512, 64)), Part((0, 64), (512, 512)))
    cut = Description("w", "float16", (512, 512), axis=1, output_axis=0, parts=parts)
    layer = Layer.alone(cut, NMSpec(NMPattern(2, 4), 1))
    assert operand_of(layer).shape == (512, 64)


def test_another_pattern_counts_only_if_it_is_2_4_as_well() -> None:
    assert view((512, 256), nm="4:8").possible  # the data happens to be 2:4
    assert all(implies_two_four(NMPattern.parse(nm)) for nm in ("1:2", "1:4", "2:8"))
    assert not any(implies_two_four(NMPattern.parse(nm)) for nm in ("4:8", "3:4"))
    one_two = NMPattern(1, 2)
    assert implies(NMPattern(1, 4), one_two) and implies(NMPattern(1, 8), one_two)
    assert not implies(NMPattern(2, 4), one_two)


def test_a_promise_without_data() -> None:
    tensor = Operand("float16", (512, 512), inputs=1, outputs=0)
    assert planned_view(tensor, NMSpec(NMPattern(1, 4), 1)).possible
    assert not planned_view(tensor, NMSpec(NMPattern(2, 4), 0)).possible
    assert not planned_view(tensor, NMSpec(NMPattern(4, 8), 1)).possible
