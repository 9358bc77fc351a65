"""Quantizers on a graph with a tied embedding, a residual and an output in between."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
from commands.export.quantizer_walk import Walk

pytest.importorskip("onnxruntime")

from step_cli.commands.export import quantized as export_quantized
from step_cli.commands.export.quantized import quantize
from step_cli.commands.export.samples import Samples
from step_cli.config.commands import Quantize
from step_cli.errors import InputError, NonFiniteError
from step_cli.formats.onnx.publish import OnnxPlace
from step_cli.formats.onnx.quantization.layers import (
    Product,
    products_to_quantize,
)
from step_cli.formats.onnx.session import OrtSession
from step_cli.nm.pattern import NMPattern, NMSpec

PLAN = {
    name: NMSpec(NMPattern(2, 4), axis)
    for name, axis in (("up", 0), ("down", 0), ("table", 1))
}
WIDTH = 64  # so that weights take more than onnx keeps inside, 1024 bytes
FEEDS = [{"ids": np.arange(4)}, {"ids": np.arange(4, 8)}]
SAMPLES = Samples(FEEDS, [], 8, 0)


def save(path: Path, **others: Any) -> Path:
    """``table`` is an embedding and the head; ``s`` is read by it and given out.

    Args:
        path: The file.
        others: Arrays in the place of its own, or None for a node to leave out.
    """
    rng = np.random.default_rng(0)
    shapes = {"table": (8, WIDTH), "up": (WIDTH, WIDTH), "down": (WIDTH, WIDTH)}
    arrays = {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    for name in arrays:
        np.moveaxis(arrays[name], PLAN[name].axis, 0)[::2] *= 0  # -0.0 among them
    arrays["bias"] = rng.normal(size=WIDTH).astype(np.float32)
    arrays |= others
    make = onnx.helper.make_node
    nodes = [
        make("Gather", ["table", "ids"], ["e"], name="embedding"),
        make("MatMul", ["e", "up"], ["m"], name="up"),
        make("Add", ["m", "bias"], ["a"], name="bias"),
        make("Relu", ["a"], ["h"], name="relu"),
        make("MatMul", ["h", "down"], ["d"], name="down"),
        make("Add", ["d", "e"], ["s"], name="residual"),
        make("Gemm", ["s", "table"], ["y"], name="head", transB=1),
    ]
    return save_nodes(path, nodes, arrays, ["s", "y"])


def save_nodes(
    path: Path, nodes: list[Any], arrays: Mapping[str, Any], outputs: list[str]
) -> Path:
    info, kind = onnx.helper.make_tensor_value_info, onnx.TensorProto
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [info("ids", kind.INT64, [4])],
        [info(name, kind.FLOAT, None) for name in outputs],
        [onnx.numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opset = [onnx.helper.make_opsetid("", 20)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), path)
    return path


def test_a_quantizer_stands_behind_bias_and_relu_and_before_a_residual(
    tmp_path: Path,
) -> None:
    found = products_to_quantize(save(tmp_path / "m.onnx"), PLAN)
    assert found.products == [
        Product("up", "up", 1, "e", "h"),
        Product("down", "down", 1, "h", "d"),
        Product("head", "table", 0, "s", "y"),
    ]
    assert found.left == {}


@pytest.mark.parametrize("codes", ["int8", "fp8"])
def test_what_only_layers_read_is_quantized_for_them_alone(
    tmp_path: Path, codes: Quantize
) -> None:
    source, place = save(tmp_path / "m.onnx"), OnnxPlace(tmp_path / "q.onnx")
    quantize(codes, SAMPLES, source, PLAN, place)
    walk = Walk(onnx.load(str(place.path)).graph, codes)
    onnx.checker.check_model(str(place.path), full_check=True)
    by_name = {node.name: node for node in walk.graph.node}
    assert list(walk.doubled()) == []
    # The embedding and the residual read numbers; an output in between gives numbers.
    table = by_name["embedding"].input[0]
    assert table != "table" and walk.array(table).dtype == np.float32
    assert list(by_name["residual"].input) == ["d_DequantizeLinear_Output", "e"]
    assert list(by_name["residual"].output) == ["s"]
    assert [value.name for value in walk.graph.output] == ["s", "y"]
    for name in PLAN:
        bits = walk.array(name).view(np.uint8)
        original = onnx.load(str(source)).graph.initializer
        (weight,) = [t for t in original if t.name == name]
        assert not bits[onnx.numpy_helper.to_array(weight) == 0].any()
    one, two = OrtSession(source).run(FEEDS[0]), OrtSession(place.path).run(FEEDS[0])
    for expected, given in zip(one, two, strict=True):
        assert 0 < np.abs(expected - given).max() < 0.2 * np.abs(expected).max()


NAMES = (
    "ids_scale",  # of a tensor that gets no quantizer: nothing happens to it
    "e_scale",
    "up_scale",
    "up_zero_point",
    "up_quantized",
    "h_QuantizeLinear_Output",
    "up_DequantizeLinear_Output",
)


@pytest.mark.parametrize("codes", ["int8", "fp8"])
@pytest.mark.parametrize("name", NAMES)
def test_a_name_that_the_quantizer_makes_is_left_to_what_has_it(
    tmp_path: Path, name: str, codes: Quantize
) -> None:
    """A parameter of the model must not become the scale of something else."""
    by_name = {}
    for given in (name, "other"):
        folder = tmp_path / given
        folder.mkdir()
        source = save(folder / "m.onnx")
        model = onnx.load(str(source))
        scaled = onnx.helper.make_node("Mul", ["d", given], ["f"], name="scaled")
        (residual,) = [node for node in model.graph.node if node.name == "residual"]
        residual.input[0] = "f"
        model.graph.node.insert(5, scaled)
        factor = np.linspace(1, 3, WIDTH, dtype=np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(factor, given))
        onnx.save(model, source)
        place = OnnxPlace(folder / "q.onnx")
        quantize(codes, SAMPLES, source, PLAN, place)
        onnx.checker.check_model(str(place.path), full_check=True)
        by_name[given] = OrtSession(place.path).run(FEEDS[0])
    for one, other in zip(*by_name.values(), strict=True):
        assert np.array_equal(one, other)


def test_an_input_with_such_a_name_is_refused(tmp_path: Path) -> None:
    source = save(tmp_path / "m.onnx")
    model = onnx.load(str(source))
    model.graph.input[0].name = "up_scale"
    model.graph.node[0].input[1] = "up_scale"
    onnx.save(model, source)
    samples = Samples([{"up_scale": feeds["ids"]} for feeds in FEEDS], [], 8, 0)
    with pytest.raises(InputError, match="up_scale has a name that the quantizer"):
        quantize("int8", samples, source, PLAN, OnnxPlace(tmp_path / "q.onnx"))


def test_a_token_without_an_embedding_is_told(tmp_path: Path) -> None:
    source = save(tmp_path / "m.onnx")
    samples = Samples([{"ids": np.arange(6, 10)}], [], 4, 0)
    with pytest.raises(InputError, match="calibration samples do not fit: ONNX"):
        quantize("int8", samples, source, PLAN, OnnxPlace(tmp_path / "q.onnx"))


def test_weights_too_large_for_the_file_lie_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, place = save(tmp_path / "m.onnx"), OnnxPlace(tmp_path / "q.onnx")
    quantize("int8", SAMPLES, source, PLAN, place)
    expected = OrtSession(place.path).run(FEEDS[0])
    large = OnnxPlace(tmp_path / "large.onnx")
    monkeypatch.setattr(export_quantized, "LARGEST_FILE", 100)
    quantize("int8", SAMPLES, source, PLAN, large)
    assert [path.name for path in large.data_files] == ["large.onnx.data"]
    for one, other in zip(OrtSession(large.path).run(FEEDS[0]), expected, strict=True):
        assert np.array_equal(one, other)


def test_a_weight_that_reaches_its_product_otherwise_is_left_with_a_reason(
    tmp_path: Path,
) -> None:
    make = onnx.helper.make_node
    arrays = {
        "table": np.ones((8, WIDTH), np.float32),
        "scaled": np.ones((16, 16), np.float32),
        "scale": np.ones((), np.float32),
        "both": np.ones((16, 16), np.float32),
    }
    nodes = [
        make("Gather", ["table", "ids"], ["e"], name="embedding"),
        make("Mul", ["scaled", "scale"], ["w"], name="mul"),
        make("MatMul", ["e", "w"], ["a"], name="scaled"),
        make("MatMul", ["a", "both"], ["b"], name="there"),
        make("Gemm", ["b", "both"], ["y"], name="back", transB=1),
    ]
    path = save_nodes(tmp_path / "m.onnx", nodes, arrays, ["y"])
    found = products_to_quantize(path, ["scaled", "both"])
    assert found.products == []
    assert found.left == {
        "scaled": "an operation stands between it and its MatMul",
        "both": "products use it in both directions",
    }
    plan = {"scaled": NMSpec(NMPattern(2, 4), 0)}
    with pytest.raises(InputError, match="no layer of the plan can be quantized: scal"):
        quantize("int8", SAMPLES, path, plan, OnnxPlace(tmp_path / "q.onnx"))


def test_an_activation_that_overflows_has_no_range(tmp_path: Path) -> None:
    huge = np.full((WIDTH, WIDTH), 3e38, np.float32)
    path = save(tmp_path / "m.onnx", up=huge)
    with pytest.raises(NonFiniteError, match=r"[dh] is NaN or infinite on the cal"):
        quantize("int8", SAMPLES, path, PLAN, OnnxPlace(tmp_path / "q.onnx"))


def test_a_relu_before_an_fp8_quantizer_is_not_lost(tmp_path: Path) -> None:
    """ONNX Runtime's own fusions leave it out; see `OrtSession`."""
    source, place = save(tmp_path / "m.onnx"), OnnxPlace(tmp_path / "q.onnx")
    quantize("fp8", SAMPLES, source, PLAN, place)
    exact = OrtSession(place.path, {})  # node by node
    for feeds in FEEDS:
        pairs = zip(exact.run(feeds), OrtSession(place.path).run(feeds), strict=True)
        assert all(np.allclose(one, other, atol=1e-6) for one, other in pairs)
