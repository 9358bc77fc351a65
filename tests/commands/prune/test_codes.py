"""`prune` on codes, worked by hand: what is kept, what is left alone, what is told."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from attacks.onnx_attacks import Arrays, model
from conftest import Outcome
from onnx import TensorProto, helper
from quantized_models import Array, run, stored

import step_cli
from step_cli.errors import NonFiniteError, NothingSelectedError, UsageError
from step_cli.formats.open import open_checkpoint

node = helper.make_node
MICROSOFT = "com.microsoft"


def save(path: Path, nodes: list[onnx.NodeProto], arrays: Arrays) -> Path:
    proto = model(nodes, arrays)
    proto.opset_import[0].version = 21
    proto.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    path.write_bytes(proto.SerializeToString())
    return path


def pruned(path: Path, **options: Any) -> Array:
    out = path.with_name("out.onnx")
    step_cli.prune(path, out, force=True, **options)
    assert step_cli.verify(out).ok
    return stored(onnx.load(str(out)))["w"]


def dequantized(**attributes: Any) -> list[onnx.NodeProto]:
    return [
        node("DequantizeLinear", ["w", "s", "z"], ["m"], **attributes),
        node("MatMul", ["x", "m"], ["y"]),
    ]


def column(*codes: int, dtype: str = "uint8") -> Array:
    return np.array(codes, dtype)[:, None]


def floats(*numbers: float) -> Array:
    return np.array(numbers, np.float32)


def test_distance_from_the_zero_point_decides(tmp_path: Path) -> None:
    arrays: Arrays = {"w": column(10, 130, 128, 255), "s": floats(0.5)}
    arrays["z"] = np.array([128], np.uint8)
    path = save(tmp_path / "a.onnx", dequantized(), arrays)
    assert not step_cli.verify(path).ok
    assert pruned(path).ravel().tolist() == [10, 128, 128, 255]
    # By the codes alone the last two would be kept; of equal ones the first is.
    arrays["z"] = np.array([200], np.uint8)
    arrays["w"] = column(10, 190, 210, 205)
    path = save(tmp_path / "a.onnx", dequantized(), arrays)
    assert pruned(path).ravel().tolist() == [10, 190, 200, 200]


def test_each_output_has_a_zero_of_its_own(tmp_path: Path) -> None:
    codes = np.array([[0, 0], [1, 1], [-1, -1], [5, 5]], np.int8)
    arrays: Arrays = {"w": codes, "s": floats(1, 1), "z": np.array([0, 5], np.int8)}
    path = save(tmp_path / "a.onnx", dequantized(axis=1), arrays)
    # Distances: 0 1 1 5 and 5 4 6 0.
    assert pruned(path).T.tolist() == [[0, 1, 0, 5], [0, 5, -1, 5]]
    (found,) = step_cli.verify(tmp_path / "out.onnx").checkpoints
    assert found.layers[0].nonzeros == 4


def test_a_code_that_is_not_zero_breaks_the_pattern_again(tmp_path: Path) -> None:
    arrays: Arrays = {"w": column(9, 7, 7, 1), "s": floats(1)}
    arrays["z"] = np.array([7], np.uint8)
    path = save(tmp_path / "a.onnx", dequantized(), arrays)
    assert step_cli.verify(path).ok and pruned(path).ravel().tolist() == [9, 7, 7, 1]
    arrays["w"] = column(9, 7, 0, 1)  # 0 is 7 steps from zero
    path = save(tmp_path / "a.onnx", dequantized(), arrays)
    assert not step_cli.verify(path).ok
    assert pruned(path).ravel().tolist() == [7, 7, 0, 1]


PER_INPUT = {
    "listed": (dequantized(axis=0), floats(1, -10, 1, 1)),
    "blocks": (
        dequantized(axis=0, block_size=2),
        floats(1, 10)[:, None].repeat(2, axis=1),
    ),
    "by hand": (
        [
            node("Cast", ["w"], ["c"], to=TensorProto.FLOAT),
            node("Mul", ["s", "c"], ["m"]),
            node("MatMul", ["x", "m"], ["y"]),
        ],
        floats(1, 10, 1, 1)[:, None],
    ),
    "divided": (
        [
            node("Cast", ["w"], ["c"], to=TensorProto.FLOAT),
            node("Div", ["c", "s"], ["m"]),
            node("MatMul", ["x", "m"], ["y"]),
        ],
        floats(1, 0.1, 1, 1)[:, None],
    ),
}


@pytest.mark.parametrize("how", PER_INPUT)
def test_scales_along_the_inputs_decide_as_well(how: str, tmp_path: Path) -> None:
    nodes, scales = PER_INPUT[how]
    arrays: Arrays = {"w": column(5, 1, 3, 4, dtype="int8").repeat(2, axis=1)}
    arrays |= {"s": scales, "z": np.zeros(scales.shape, np.int8)}
    path = save(tmp_path / "a.onnx", nodes, arrays)
    # Sizes: 5 10 3 4, and in blocks 5 1 30 40.
    expected = [0, 0, 3, 4] if how == "blocks" else [5, 1, 0, 0]
    assert pruned(path).T.tolist() == [expected] * 2


def test_a_scale_of_zero_does_not_make_a_group_that_complies_smaller(
    tmp_path: Path,
) -> None:
    arrays: Arrays = {"w": column(0, 3, 0, 4, dtype="int8"), "s": floats(1, 0, 1, 0)}
    arrays["z"] = np.zeros(4, np.int8)
    path = save(tmp_path / "a.onnx", dequantized(axis=0), arrays)
    assert pruned(path).ravel().tolist() == [0, 3, 0, 4]
    arrays["w"] = column(1, 3, 1, 4, dtype="int8")
    path = save(tmp_path / "a.onnx", dequantized(axis=0), arrays)
    assert pruned(path).ravel().tolist() == [1, 0, 1, 0]


@pytest.mark.parametrize("scales", [[np.nan], [np.inf], [1, np.nan, 1, 1]])
def test_P14_scales_that_are_not_finite_are_refused(
    scales: list[float], tmp_path: Path
) -> None:
    arrays: Arrays = {"w": column(5, 1, 3, 4, dtype="int8"), "s": floats(*scales)}
    arrays["z"] = np.zeros(len(scales), np.int8)
    path = save(tmp_path / "a.onnx", dequantized(axis=0), arrays)
    with pytest.raises(NonFiniteError, match="its scale makes weights NaN"):
        pruned(path)
    assert not (tmp_path / "out.onnx").exists()


@pytest.mark.parametrize("per_input", [False, True])
def test_float8_codes_are_pruned(per_input: bool, tmp_path: Path) -> None:
    numbers = np.random.default_rng(0).normal(size=(16, 8)).astype(np.float32)
    codes = numbers.astype(ml_dtypes.float8_e4m3fn)
    scales = np.random.default_rng(1).uniform(0.1, 2, 16 if per_input else 8)
    arrays: Arrays = {"w": codes, "s": scales.astype(np.float32)}
    arrays["z"] = np.zeros(scales.shape, ml_dtypes.float8_e4m3fn)
    nodes = dequantized(axis=0 if per_input else 1)
    path = save(tmp_path / "a.onnx", nodes, arrays)
    now = pruned(path).astype(np.float32)
    scale = arrays["s"][:, None] if per_input else arrays["s"]
    dense = codes.astype(np.float32) * scale
    expected = pruned_floats(tmp_path, {"w": dense})["w"]
    np.testing.assert_array_equal(now * scale, expected)
    x = np.random.default_rng(2).normal(size=(3, 16)).astype(np.float32)
    outputs = run(onnx.load(str(tmp_path / "out.onnx")), {"x": x})
    np.testing.assert_allclose(outputs, x @ expected, rtol=1e-5, atol=1e-6)


def pruned_floats(tmp_path: Path, arrays: Arrays, **options: Any) -> Arrays:
    """The same numbers as floats, each multiplied once, pruned."""
    nodes, x = [], "x"
    for name in arrays:
        nodes.append(node("MatMul", [x, name], [f"{name}.y"]))
        x = f"{name}.y"
    nodes[-1].output[0] = "y"
    path = save(tmp_path / "floats.onnx", nodes, arrays)
    step_cli.prune(path, tmp_path / "floats-out.onnx", force=True, **options)
    return stored(onnx.load(str(tmp_path / "floats-out.onnx")))


@pytest.mark.parametrize("options", [{"transposable": True}, {"density": 0.4}])
@pytest.mark.parametrize("behind", [False, True])
def test_scales_of_outputs_decide_where_layers_or_outputs_are_compared(
    options: dict[str, Any], behind: bool, tmp_path: Path
) -> None:
    """As they decide for the same numbers in floats."""
    random = np.random.default_rng(0)
    nodes, arrays, numbers = [], dict[str, Array](), dict[str, Array]()
    x = "x"
    for name, size in (("a", 0.01), ("b", 1.0)):
        codes = random.integers(0, 256, (16, 16)).astype(np.uint8)
        scale = (size * random.uniform(0.1, 2, 16)).astype(np.float32)
        arrays |= {name: codes, f"{name}.s": scale, f"{name}.z": np.uint8(100)}  # type: ignore[dict-item]
        numbers[name] = (codes.astype(np.float32) - 100) * scale
        y = f"{name}.y" if name == "a" else "y"
        nodes += _product(x, name, y, behind=behind)
        x = y
    path = save(tmp_path / "a.onnx", nodes, arrays)
    report = step_cli.prune(path, tmp_path / "out.onnx", **options)
    now = stored(onnx.load(str(tmp_path / "out.onnx")))
    expected = pruned_floats(tmp_path, numbers, **options)
    for name in numbers:
        np.testing.assert_array_equal(now[name] != 100, expected[name] != 0)
    assert [layer.name for layer in report.layers] == ["a", "b"]
    before = sum(np.abs(array).sum() for array in numbers.values())
    after = sum(np.abs(expected[name]).sum() for name in numbers)
    assert report.totals.retained == pytest.approx(after / before, rel=1e-5)


def _product(x: str, name: str, y: str, *, behind: bool) -> list[onnx.NodeProto]:
    """A product by codes whose scale stands before it, or behind it."""
    if not behind:
        given = [name, f"{name}.s", f"{name}.z"]
        return [
            node("DequantizeLinear", given, [f"{name}.m"], axis=1),
            node("MatMul", [x, f"{name}.m"], [y]),
        ]
    made = [f"{name}.{part}" for part in ("x", "xs", "xz", "p", "c", "both")]
    return [
        node("DynamicQuantizeLinear", [x], made[:3]),
        node("MatMulInteger", [made[0], name, made[2], f"{name}.z"], [made[3]]),
        node("Cast", [made[3]], [made[4]], to=TensorProto.FLOAT),
        node("Mul", [made[1], f"{name}.s"], [made[5]]),
        node("Mul", [made[4], made[5]], [y]),
    ]


def test_P15_unsigned_codes_without_a_zero_point_are_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [
        node("DequantizeLinear", ["w", "s"], ["m"]),
        node("MatMul", ["x", "m"], ["h"]),
        node("MatMulInteger", ["h", "v", "", "z"], ["i"]),
        node("Cast", ["i"], ["y"], to=TensorProto.FLOAT),
    ]
    arrays: Arrays = {"w": column(10, 130, 128, 255).repeat(4, axis=1)}
    arrays |= {"v": arrays["w"], "s": floats(1), "z": np.array(0, np.uint8)}
    path = save(tmp_path / "a.onnx", nodes, arrays)
    with caplog.at_level(logging.WARNING):
        report = step_cli.prune(path, tmp_path / "out.onnx")
    assert [layer.name for layer in report.layers] == ["v"]  # its zero point is 0
    assert [one.reason for one in report.skipped if one.name == "w"] == ["kind"]
    assert report.totals.coverage == 0.5
    assert "w is left alone" in caplog.text and "no zero point is given" in caplog.text
    assert "--include 'w' prunes it" in caplog.text
    assert pruned(path, include=["w"])[:, 0].tolist() == [0, 130, 0, 255]


def test_signed_codes_need_no_zero_point(tmp_path: Path) -> None:
    nodes = [
        node("DequantizeLinear", ["w", "s"], ["m"]),
        node("MatMul", ["x", "m"], ["y"]),
    ]
    arrays: Arrays = {"w": column(5, 1, -9, 4, dtype="int8"), "s": floats(1)}
    path = save(tmp_path / "a.onnx", nodes, arrays)
    assert pruned(path).ravel().tolist() == [5, 0, -9, 0]


@pytest.mark.parametrize(("axis", "left"), [(1, False), (0, True)])
def test_P15_scales_that_are_computed_must_not_differ_along_inputs(
    axis: int, left: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [node("Abs", ["s"], ["t"]), *dequantized(axis=axis)]
    nodes[1].input[1] = "t"
    arrays: Arrays = {"w": np.arange(-8, 8, dtype=np.int8).reshape(4, 4)}
    arrays |= {"s": floats(1, 2, 3, 4), "z": np.zeros(4, np.int8)}
    path = save(tmp_path / "a.onnx", nodes, arrays)
    with caplog.at_level(logging.WARNING):
        if left:
            with pytest.raises(NothingSelectedError, match="1 kind"):
                pruned(path)
            assert "scales differ along the inputs" in caplog.text
            pruned(path, include=["w"])
        else:
            pruned(path)
            assert "left alone" not in caplog.text
    with pytest.raises(NothingSelectedError):
        pruned(path, transposable=True)
    assert "--transposable compares numbers" in caplog.text or left


def test_one_scale_must_hold_for_all_products(tmp_path: Path) -> None:
    """Else sizes of different outputs are not compared; masks need no scale."""
    nodes = [
        *dequantized(axis=1),
        node("DequantizeLinear", ["w", "t", "z"], ["n"], axis=1),
        node("MatMul", ["y", "n"], ["o"]),
    ]
    arrays: Arrays = {"w": np.arange(-8, 8, dtype=np.int8).reshape(4, 4)}
    arrays |= {"s": floats(1, 2, 3, 4), "z": np.zeros(4, np.int8)}
    path = save(tmp_path / "a.onnx", nodes, {**arrays, "t": arrays["s"]})
    tensors = {tensor.name: tensor for tensor in open_checkpoint(path).tensors}
    found = tensors["w"].quantized
    assert found is not None and found.scales is not None
    path = save(tmp_path / "a.onnx", nodes, {**arrays, "t": floats(4, 2, 3, 1)})
    tensors = {tensor.name: tensor for tensor in open_checkpoint(path).tensors}
    found = tensors["w"].quantized
    assert found is not None and found.scales is None and found.scale_axes == {1}
    expected = [[-8, -7, -6, -5], [-4, 0, 0, 0], [0, 0, 0, 0], [0, 5, 6, 7]]
    assert pruned(path).tolist() == expected


def test_codes_that_a_gather_reads_too_are_left_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [
        node("Gather", ["w", "x"], ["rows"], name="table"),
        node("DequantizeLinear", ["rows", "s", "z"], ["e"]),
        *dequantized(),
    ]
    arrays: Arrays = {"w": column(5, 1, 3, 4), "s": floats(1)}
    arrays["z"] = np.array([2], np.uint8)
    path = save(tmp_path / "a.onnx", nodes, arrays)
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(NothingSelectedError, match="3 consumer"),
    ):
        pruned(path)
    assert "used by Gather node 'table' too" in caplog.text
    assert pruned(path, include=["w"]).ravel().tolist() == [5, 2, 2, 4]


def test_P15_what_cannot_be_pruned_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    four_bits = helper.make_tensor("packed", TensorProto.INT4, [4, 1], [1, 2, 3, 4])
    nodes = [
        *dequantized(),
        node("DynamicQuantizeLinear", ["float"], ["q", "qs", "qz"]),
        node("MatMulInteger", ["y", "q", "", "qz"], ["i"]),
        node("DequantizeLinear", ["unknown", "s", "x"], ["u"]),
        node("MatMul", ["i", "u"], ["o"]),
        node("DequantizeLinear", ["packed", "s"], ["p"]),
        node("MatMul", ["o", "p"], ["r"]),
    ]
    arrays: Arrays = {"w": column(5, 1, 3, 4).repeat(4, axis=1), "s": floats(1)}
    arrays |= {"z": np.array([2], np.uint8), "float": np.ones((4, 4), np.float32)}
    arrays["unknown"] = np.ones((4, 4), np.uint8)
    path = save(tmp_path / "a.onnx", nodes, arrays)
    proto = onnx.load(str(path))
    proto.graph.initializer.append(four_bits)
    onnx.save(proto, str(path))
    with caplog.at_level(logging.WARNING):
        report = step_cli.prune(path, tmp_path / "out.onnx")
    assert [layer.name for layer in report.layers] == ["w"]
    reasons = {one.name: one.reason for one in report.skipped}
    assert reasons["float"] == "untraced" and reasons["unknown"] == "kind"
    assert reasons["packed"] == "dtype"
    lines = [record.getMessage() for record in caplog.records]
    assert any("while the model runs: float" in line for line in lines)
    assert any("mean zero: unknown" in line for line in lines)
    assert any("4 bits, cannot be changed in place: packed" in line for line in lines)


REFUSED = {
    "--method wanda": {"method": "wanda"},
    "--method sparsegpt": {"method": "sparsegpt"},
    "--refit layer": {"refit": "layer"},
    "--recalibrate-bn": {"recalibrate_bn": True},
}


@pytest.mark.parametrize("option", REFUSED)
def test_P14_a_model_of_pytorch_is_not_filled_with_codes(
    option: str, tmp_path: Path
) -> None:
    arrays: Arrays = {"w": column(5, 1, 3, 4), "s": floats(1)}
    arrays["z"] = np.array([2], np.uint8)
    path = save(tmp_path / "a.onnx", dequantized(), arrays)
    (tmp_path / "text.txt").write_text("text")
    with pytest.raises(UsageError, match=f"{option} does not apply to quantized"):
        pruned(path, calibration=tmp_path / "text.txt", **REFUSED[option])
    assert not (tmp_path / "out.onnx").exists()


def test_random_and_another_pattern_work_on_codes(tmp_path: Path) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (16, 8)).astype(np.uint8)
    arrays: Arrays = {"w": codes, "s": floats(1), "z": np.array([90], np.uint8)}
    path = save(tmp_path / "a.onnx", dequantized(), arrays)
    for options in ({"method": "random"}, {"nm": "1:4"}, {"nm": "4:8"}):
        now = pruned(path, **options)
        kept = now != 90
        np.testing.assert_array_equal(now[kept], codes[kept])
        assert not kept.all()


def test_orders_of_channels_are_refused_in_one_line(
    step_cli: Callable[..., Outcome], tmp_path: Path
) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    arrays: Arrays = {"w": np.ones((8, 8), np.uint8), "s": floats(1)}
    arrays["z"] = np.array([2], np.uint8)
    path = save(tmp_path / "a.onnx", dequantized(), arrays)
    found = step_cli("prune", path, tmp_path / "out.onnx", "--permute")
    assert found.code == 4 and "Runtime cannot run the graph" in found.error  # on 2 x 5
    proto = onnx.load(str(path))
    proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 8
    onnx.save(proto, str(path))
    found = step_cli("prune", path, tmp_path / "out.onnx", "--permute")
    assert found.code == 3 and "DequantizeLinear may treat each channel" in found.error
