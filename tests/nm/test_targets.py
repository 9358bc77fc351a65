"""When TensorRT may run a layer sparse: the rows of NVIDIA's rule."""

import numpy as np
import pytest

from step_cli.nm.count import TensorToCheck
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.nm.targets import View, implies_two_four, tensorrt_view
from step_cli.nm.tensor_data import TensorData
from step_cli.nm.weight_rule import Description


def view(
    shape: tuple[int, ...], dtype: str = "float16", axis: int = 1, nm: str = "2:4"
) -> View:
    """The view of a layer of zeros with two ones in each group along ``axis``."""
    bits = {"float32": 4, "int8": 1, "float8_e4m3fn": 1}.get(dtype, 2)
    array = np.zeros(shape, f"u{bits}")
    first = [slice(None)] * len(shape)
    for start in (0, 1):
        first[axis] = slice(start, None, 4)
        array[tuple(first)] = 1
    given = TensorToCheck(TensorData(array, dtype), NMSpec(NMPattern.parse(nm), axis))
    return tensorrt_view(Description("fc.weight", dtype, shape), given, holds=True)


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


def test_another_pattern_counts_only_if_it_is_2_4_as_well() -> None:
    assert view((512, 256), nm="4:8").possible  # the data happens to be 2:4
    assert all(implies_two_four(NMPattern.parse(nm)) for nm in ("1:2", "1:4", "2:8"))
    assert not any(implies_two_four(NMPattern.parse(nm)) for nm in ("4:8", "3:4"))
