"""`export --quantize`: what is written, what is refused, and faults that are found."""

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
from commands.export.exporting import left_in, run
from commands.export.quantizer_walk import Walk, faults_of, mutated

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from step_cli.commands.export import quantized as export_quantized  # noqa: E402
from step_cli.commands.export.quantized import Quantized, with_quantizers  # noqa: E402
from step_cli.commands.export.samples import fitted  # noqa: E402
from step_cli.errors import InputError, NonFiniteError, UsageError  # noqa: E402
from step_cli.formats.onnx.inputs import GraphInput  # noqa: E402
from step_cli.formats.onnx.quantization.layers import (  # noqa: E402
    products_to_quantize,
)
from step_cli.formats.open import open_checkpoint  # noqa: E402
from step_cli.formats.tensorrt.api import find_runtime  # noqa: E402
from step_cli.formats.tensorrt.engine import EngineOptions, build_engine  # noqa: E402
from step_cli.render import show  # noqa: E402
from step_cli.reports import ExportLayer, ExportReport  # noqa: E402

WEIGHTS = ("up.weight", "head.weight")


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten samples of the small network: its batch is two."""
    path = tmp_path_factory.mktemp("samples") / "x.npz"
    rng = np.random.default_rng(0)
    np.savez(path, x=rng.normal(size=(10, 4, 16)).astype(np.float32))
    return path


@pytest.fixture(scope="module")
def quantized(
    net: Path, samples: Path, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, tuple[Path, ExportReport]]:
    """The small network in both codes, and the reports of that."""
    made = {}
    for codes in ("int8", "fp8"):
        out = tmp_path_factory.mktemp(codes) / "m.onnx"
        made[codes] = out, run(net, out, quantize=codes, calibration=samples)
    return made


@pytest.fixture
def int8(quantized: dict[str, tuple[Path, ExportReport]]) -> Path:
    return quantized["int8"][0]


def weights_of(net: Path) -> dict[str, Any]:
    tensors = {t.name: t for t in open_checkpoint(net / "m.safetensors").tensors}
    return {name: tensors[name].read() for name in WEIGHTS}


@pytest.mark.parametrize("codes", ["int8", "fp8"])
def test_the_written_file_is_compared_on_both_kinds_of_samples(
    net: Path, quantized: dict[str, tuple[Path, ExportReport]], codes: str
) -> None:
    out, report = quantized[codes]
    found = report.quantization
    assert report.ok and report.precision == "fp32" and found is not None
    assert report.parity is not None and report.parity.ok
    assert (found.codes, found.layers, found.runtime) == (codes, 2, "ONNX Runtime, CPU")
    for part, count in ((found.calibration, 8), (found.held_out, 2)):
        assert part is not None and part.samples == count
        assert part.max_abs is not None and part.mean_abs is not None
        assert 0 < part.mean_abs < part.max_abs < 0.1
        assert part.cosine is not None and 0.99 < part.cosine < 1
    assert found.fp32_bytes > (report.bytes.output or 0) - 4000
    assert faults_of(out, weights_of(net), codes) == []
    assert left_in(out.parent) == ["m.onnx"]


def test_the_table_says_what_is_codes_and_how_far_it_is(
    quantized: dict[str, tuple[Path, ExportReport]],
) -> None:
    out = io.StringIO()
    show(quantized["fp8"][1], out)
    text = out.getvalue()
    assert text.count("input, weight, output") == 2
    assert "fp8: 2 layers quantized" in text
    assert "fp8 against fp32 (ONNX Runtime, CPU) on 8 calibration samples: max" in text
    assert "on 2 held-out samples: max abs" in text and "cosine 0.99" in text


def test_the_same_model_gives_the_same_bytes(
    net: Path, samples: Path, int8: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.onnx"
    assert run(net, again, quantize="int8", calibration=samples).ok
    assert again.read_bytes() == int8.read_bytes()
    assert str(tmp_path).encode() not in again.read_bytes()


def test_an_excluded_layer_stays_as_it_is(
    net: Path, samples: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.onnx"
    options = {"quantize": "int8", "calibration": samples, "exclude": ["head.*"]}
    report = run(net, out, **options)
    assert report.ok and [layer.name for layer in report.layers] == ["up.weight"]
    walk = Walk(onnx.load(str(out)).graph, "int8")
    assert walk.array("up.weight").dtype == np.int8
    assert walk.array("head.weight").dtype == np.float32
    # Whatever reads the quantized layer reads its codes.
    assert walk.quantizers_of_input("up.weight")[0] is not None


def test_fewer_than_five_samples_leave_none_to_hold_out(
    net: Path, tmp_path: Path
) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones((3, 4, 16), np.float32))
    out = tmp_path / "m.onnx"
    report = run(net, out, quantize="int8", calibration=tmp_path / "x.npz")
    assert report.quantization is not None and report.quantization.held_out is None
    part = report.quantization.calibration
    assert part is not None and part.samples == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibration": None}, "--quantize: give --calibration FILE"),
        ({"quantize": None}, "--calibration has no meaning without --quantize"),
        ({"precision": "fp16"}, "--precision fp16: a quantized graph is fp32"),
        ({"quantize": "fp8", "opset": 18}, "--opset: fp8 needs 19 or later"),
        ({"to": "compressed", "model": None, "input": None}, "no meaning with --to co"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    net: Path, samples: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    given = {"quantize": "int8", "calibration": samples, **options}
    with pytest.raises(UsageError, match=message):
        run(net, tmp_path / "m.onnx", **given)
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(
    ("arrays", "kind", "message"),
    [
        ({"z": np.ones((2, 4, 16))}, InputError, "the model takes no 'z'"),
        ({"x": np.ones((2, 5, 16))}, InputError, r"shape \[5, 16\], the graph takes"),
        ({"x": np.full((2, 4, 16), np.nan)}, NonFiniteError, "is nan"),
    ],
)
def test_samples_that_do_not_fit_are_refused(
    net: Path,
    tmp_path: Path,
    arrays: dict[str, Any],
    kind: type[Exception],
    message: str,
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(kind, match=message):
        run(
            net,
            tmp_path / "m.onnx",
            quantize="int8",
            calibration=tmp_path / "x.npz",
            no_check=True,
        )
    assert left_in(tmp_path) == ["x.npz"]


def test_tokens_are_whole_numbers() -> None:
    ids = GraphInput("ids", "int64", ("batch", 3))
    whole = {"ids": np.array([[1.0, 2.0, 3.0]])}
    found = fitted(whole, [ids], Path("x.npz"))["ids"]
    assert found.dtype == np.int64 and found.tolist() == [[1, 2, 3]]
    with pytest.raises(InputError, match="ids holds numbers that are not whole"):
        fitted({"ids": np.array([[1.0, 2.5, 3.0]])}, [ids], Path("x.npz"))


def asymmetric(walk: Walk) -> None:
    """Weights whose zero point is 1."""
    codes = walk.array("up.weight")
    shifted = np.clip(codes.astype(int) + 1, -128, 127).astype(np.int8)
    replace(walk, "up.weight", shifted)
    (dequantizer,) = walk.takers("up.weight")
    zeros = dequantizer.input[2]
    replace(walk, zeros, np.ones_like(walk.array(zeros)))


def without_output_quantizer(walk: Walk) -> None:
    output = walk.output("up.weight")
    (quantizer,) = walk.takers(output)
    (dequantizer,) = walk.takers(quantizer.output[0])
    drop(walk, quantizer, dequantizer)


def without_input_quantizer(walk: Walk) -> None:
    drop(walk, *walk.quantizers_of_input("up.weight"))


def folded(walk: Walk) -> None:
    """The weight as numbers, its dequantizer computed in advance."""
    (dequantizer,) = walk.takers("up.weight")
    scale = walk.array(dequantizer.input[1])
    codes = walk.array("up.weight")
    replace(walk, "up.weight", codes.astype(np.float32) * scale)
    for node in walk.takers(dequantizer.output[0]):
        rewire(node, dequantizer.output[0], "up.weight")
    walk.graph.node.remove(dequantizer)


def doubled(walk: Walk) -> None:
    """A second pair on the edge between the two layers, for one reader of it."""
    output = walk.output("up.weight")
    (quantizer,) = walk.takers(output)
    scale, zero = quantizer.input[1:]
    product = walk.product("head.weight")
    place = list(walk.graph.node).index(product)
    make = onnx.helper.make_node
    second = make("DequantizeLinear", ["q2", scale, zero], ["d2"], name="d2")
    walk.graph.node.insert(place, second)
    first = make("QuantizeLinear", [output, scale, zero], ["q2"], name="q2")
    walk.graph.node.insert(place, first)
    product = walk.product("head.weight")
    rewire(product, walk.quantizers_of_input("head.weight")[1].output[0], "d2")


def one_zero_lost(walk: Walk) -> None:
    codes = walk.array("up.weight").copy()
    codes.reshape(-1)[int((codes == 0).argmax())] = 1
    replace(walk, "up.weight", codes)


def replace(walk: Walk, name: str, array: Any) -> None:
    walk.stored[name].CopyFrom(onnx.numpy_helper.from_array(array, name))


def rewire(node: Any, old: str, new: str) -> None:
    for place, name in enumerate(node.input):
        if name == old:
            node.input[place] = new


def drop(walk: Walk, quantizer: Any, dequantizer: Any) -> None:
    for node in walk.takers(dequantizer.output[0]):
        rewire(node, dequantizer.output[0], quantizer.input[0])
    walk.graph.node.remove(quantizer)
    walk.graph.node.remove(dequantizer)


MUTATIONS: list[tuple[Callable[[Walk], None], str]] = [
    (asymmetric, "a code of zero is not 0"),
    (without_output_quantizer, "its output has no quantizer"),
    (without_input_quantizer, "its input has no quantizer"),
    (folded, "its weight has no quantizer"),
    (doubled, "quantized twice"),
    (one_zero_lost, "1 zeros have codes other than 0"),
]


@pytest.mark.parametrize(("change", "fault"), MUTATIONS)
def test_each_mutation_is_found_in_the_file(
    net: Path,
    exported: Path,
    int8: Path,
    tmp_path: Path,
    change: Callable[[Walk], None],
    fault: str,
) -> None:
    layers = [
        ExportLayer(name=n, onnx_name=n, pattern="2:4", axis=1, pattern_ok=True)
        for n in WEIGHTS
    ]
    found = products_to_quantize(exported, WEIGHTS)
    assert with_quantizers(layers, Quantized("int8", exported, int8, found))[1] == []
    broken = mutated(int8, tmp_path / "broken.onnx", change)
    onnx.checker.check_model(str(broken))
    described, faults = with_quantizers(
        layers, Quantized("int8", exported, broken, found)
    )
    assert any(fault in one for one in faults), faults
    if change is not doubled:
        assert fault in str(described[0].advice)
    # The walk of the tests, which shares no code with it, finds it too.
    assert faults_of(broken, weights_of(net), "int8") != []


def test_a_fault_of_the_library_publishes_nothing(
    net: Path, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = export_quantized.add_quantizers

    def careless(*given: Any) -> onnx.ModelProto:
        model: onnx.ModelProto = real(*given)
        without_output_quantizer(Walk(model.graph, "int8"))
        return model

    monkeypatch.setattr(export_quantized, "add_quantizers", careless)
    report = run(net, tmp_path / "m.onnx", quantize="int8", calibration=samples)
    assert (report.exit_code, report.output) == (1, None)
    assert report.quantization is not None
    assert report.quantization.faults == [
        "head.weight: its input has no quantizer",
        "up.weight: its output has no quantizer",
    ]
    assert left_in(tmp_path) == []


def test_where_onnx_runtime_refuses_the_graph_nothing_is_claimed(
    net: Path, samples: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path) -> None:
        raise InputError("ONNX Runtime refuses it: fp8")

    monkeypatch.setattr(export_quantized, "OrtSession", refuse)
    report = run(net, tmp_path / "m.onnx", quantize="fp8", calibration=samples)
    found = report.quantization
    assert found is not None and report.ok
    assert (found.calibration, found.held_out, found.runtime) == (None, None, None)


@pytest.mark.tensorrt
def test_an_engine_is_built_of_a_quantized_graph(
    net: Path, samples: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorrt_rtx")
    report: ExportReport = run(
        net,
        tmp_path / "m.plan",
        "tensorrt",
        quantize="int8",
        calibration=samples,
        compute_capability=["8.0"],
        backend="tensorrt-rtx",
    )
    assert report.ok and report.precision == "fp32"
    assert report.backend is not None and report.backend.sparse_weights == "ignored"
    assert report.quantization is not None and report.quantization.layers == 2
    assert f"--quantize int8 --calibration {samples}" in report.notes[-1]
    assert "--precision" not in report.notes[-1]
    advice = str(report.layers[0].advice)
    assert "sparse tends to win from 256" in advice and "quantizer" not in advice


@pytest.mark.tensorrt
@pytest.mark.parametrize(
    ("codes", "target"),
    [("int8", "8.0"), ("int8", "12.0"), ("fp8", "8.9"), ("fp8", "12.0")],
)
def test_tripwire_rtx_ignores_the_sparsity_flag_of_codes_too(
    quantized: dict[str, tuple[Path, ExportReport]],
    tmp_path: Path,
    codes: str,
    target: str,
) -> None:
    """A failure here is news: TensorRT-RTX has begun to honour sparse weights."""
    pytest.importorskip("tensorrt_rtx")
    runtime, source = find_runtime("tensorrt-rtx"), quantized[codes][0]
    builds = [
        build_engine(
            runtime,
            source,
            tmp_path / "m.plan",
            EngineOptions(sparse=on, compute_capabilities=[target]),
        )
        for on in (True, False)
    ]
    assert builds[0].sha256 == builds[1].sha256
    assert "(Sparsity)" not in builds[0].log
    # Both layers multiply codes by codes.
    word = {"int8": "Int8", "fp8": "FP8"}[codes]
    for layer in ("up", "head"):
        (line,) = re.findall(rf"Name: {layer}_myl.*LayerType: gemm.*", builds[0].log)
        assert len(re.findall(f"Datatype: {word}", line)) >= 2
