import math

import numpy as np
import pytest

from step_cli.errors import InputError
from step_cli.formats.onnx.session import difference


def test_difference_is_relative_to_the_larger_of_one_and_the_reference() -> None:
    reference = [np.array([100.0, -1.0]), np.array([0.5])]
    found = [np.array([100.0, -1.0]) + 0.009, np.array([0.5])]
    worst = difference(["big", "small"], found, reference)
    assert worst.output == "big"
    assert worst.max_abs == pytest.approx(0.009)
    assert worst.max_rel == pytest.approx(0.00009)
    assert worst.within(1e-4)
    assert not worst.within(8e-5)


def test_the_worst_output_is_judged_by_its_own_scale() -> None:
    reference = [np.array([1000.0]), np.array([0.1])]
    found = [np.array([1000.05]), np.array([0.101])]
    worst = difference(["big", "small"], found, reference)
    assert worst.output == "small"
    assert not worst.within(9e-4)


@pytest.mark.parametrize("where", [0, 1])
def test_nan_is_never_within(where: int) -> None:
    outputs = [np.array([1.0, 2.0]), np.array([1.0, 2.0])]
    outputs[where] = np.array([1.0, math.nan])
    worst = difference(["y"], [outputs[0]], [outputs[1]])
    assert math.isnan(worst.max_abs)
    assert not worst.within(1e9)


def test_infinity_is_never_within() -> None:
    worst = difference(["y"], [np.array([math.inf])], [np.array([1.0])])
    assert not worst.within(1e9)


def test_other_shapes_are_refused() -> None:
    with pytest.raises(InputError, match="returns shapes"):
        difference(["y"], [np.zeros((2, 1))], [np.zeros((2,))])


def test_empty_outputs_are_equal() -> None:
    assert difference(["y"], [np.zeros((0, 2))], [np.zeros((0, 2))]).within(1e-9)
