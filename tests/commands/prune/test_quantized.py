"""`prune` and `verify-nm` on files that the quantizer of ONNX Runtime has written."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest
from quantized_models import (
    Array,
    attention,
    conv_net,
    in_floats,
    is_exact,
    largest_two,
    mlp,
    numbers_of,
    quantize,
    run,
    steps_apart,
    stored,
)

import step_cli
from step_cli.formats.plan import KEY, plan_json
from step_cli.nm.pattern import NMPattern, NMSpec
from step_cli.reports import CheckpointVerdict

pytest.importorskip("onnxruntime")

WAYS = [
    *("dynamic-int8", "dynamic-int8-channel-narrow", "dynamic-uint8"),
    *("dynamic-uint8-channel", "QOperator-int8-channel", "QOperator-int8-offset"),
    *("QOperator-uint8-offset", "QDQ-int8", "QDQ-int8-channel-narrow"),
    *("QDQ-int8-offset", "QDQ-uint8-channel-offset"),
]


def verified(path: Path, **options: object) -> CheckpointVerdict:
    (found,) = step_cli.verify(path, **options).checkpoints
    return found


class Weight:
    """A weight as the quantizer stores it, and which two of four are to be kept."""

    def __init__(self, arrays: Mapping[str, Array], name: str, axis: int) -> None:
        self.name, self.axis = f"{name}_quantized", axis
        self.codes = arrays[self.name]
        self.zero, self.scale = arrays[f"{name}_zero_point"], arrays[f"{name}_scale"]
        self.dense = self.numbers(self.codes, self.scale)
        self.keep = largest_two(self.dense, axis)

    def numbers(self, codes: Array, scale: Array) -> Array:
        outputs = 0 if codes.ndim > 2 else 1 - self.axis
        return numbers_of(codes, self.zero, scale, outputs)

    def factor(self, model: onnx.ModelProto) -> Array:
        """The masked numbers that its product multiplies by: whole ones if it can."""
        users = [one.op_type for one in model.graph.node if self.name in one.input]
        whole = any(user.endswith("Integer") for user in users)
        numbers = self.numbers(self.codes, np.ones(1, np.float32))
        return np.where(self.keep, numbers if whole else self.dense, 0)


def check_pruned(
    source: Path,
    out: Path,
    axes: Mapping[str, int],
    how: str,
    feeds: dict[str, Array],
    rounding: float = 0,
) -> None:
    """Prune a file, and compare codes, verdicts and outputs with those of NumPy.

    ``rounding`` is that of floats between exact products, relative to the outputs.
    """
    before = verified(source)
    assert before.totals.coverage == 1 and not any(one.ok for one in before.layers)
    assert {one.name: one.axis for one in before.layers} == {
        f"{name}_quantized": axis for name, axis in axes.items()
    }
    report = step_cli.prune(source, out)
    after = verified(out, strict=True)
    assert after.ok and all(one.density <= 0.5 for one in after.layers)
    assert not verified(out, baseline=source).ok  # the dense model has other masks
    old, new = onnx.load(str(source)), onnx.load(str(out))
    codes, pruned = stored(old), stored(new)
    weights = [Weight(codes, name, axis) for name, axis in axes.items()]
    layers = {layer.name: layer for layer in report.layers}
    for one in weights:
        now, layer = pruned[one.name], layers.pop(one.name)
        sparse = one.numbers(now, one.scale)
        np.testing.assert_array_equal(sparse, np.where(one.keep, one.dense, 0))
        np.testing.assert_array_equal(now[one.keep], one.codes[one.keep])
        share = np.abs(sparse).sum() / np.abs(one.dense).sum()
        assert layer.retained == pytest.approx(share, rel=1e-5)
    assert not layers
    for name in set(codes) - {one.name for one in weights}:
        np.testing.assert_array_equal(codes[name], pruned[name])
    found, dense = run(new, feeds), run(old, feeds)
    factors = {one.name: one.factor(old) for one in weights}
    last, wanted = old.graph.node[-1], run(in_floats(old, factors), feeds)
    if rounding:
        assert np.abs(found - wanted).max() <= rounding * np.abs(wanted).max()
    elif is_exact(how):
        np.testing.assert_array_equal(found, wanted)
    else:  # floats round before they are quantized, integers only once
        assert last.op_type == "DequantizeLinear"
        assert steps_apart(found, wanted, float(codes[last.input[1]])) <= 2
    assert np.abs(found - dense).max() > 0.1 * np.abs(dense).max()


@pytest.mark.parametrize("how", WAYS)
def test_codes_of_linear_layers_are_pruned(how: str, tmp_path: Path) -> None:
    x = mlp(tmp_path / "m.onnx")
    source = quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", how, {"x": x})
    turned = how.startswith("dynamic")  # by the quantizer
    axes = {"w1": 0 if turned else 1, "w2": 0}
    check_pruned(source, tmp_path / "out.onnx", axes, how, {"x": x})


@pytest.mark.parametrize("how", WAYS)
def test_codes_of_convolutions_are_pruned(how: str, tmp_path: Path) -> None:
    x = conv_net(tmp_path / "m.onnx")
    source = quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", how, {"x": x})
    turned = how.startswith("dynamic")
    axes = {"c1": 1, "c2": 1, "w": 0 if turned else 1}
    check_pruned(source, tmp_path / "out.onnx", axes, how, {"x": x})


@pytest.mark.parametrize("how", ["dynamic-int8-channel", "dynamic-uint8-channel"])
def test_codes_of_fused_attention_are_pruned(how: str, tmp_path: Path) -> None:
    x = attention(tmp_path / "m.onnx")
    source = quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", how, {"x": x})
    operators = {one.op_type for one in onnx.load(str(source)).graph.node}
    assert {"QAttention", "MatMulInteger"} <= operators
    out, axes = tmp_path / "out.onnx", {"wa": 0, "w": 0}
    check_pruned(source, out, axes, how, {"x": x}, rounding=1e-2)


@pytest.mark.parametrize("how", ["dynamic-uint8", "QOperator-int8-offset", "QDQ-int8"])
def test_a_transformer_is_pruned(how: str, transformer: Path, tmp_path: Path) -> None:
    feeds = {"input_ids": np.random.default_rng(0).integers(1, 4096, (1, 64))}
    source = quantize(transformer, tmp_path / "q.onnx", how, feeds)
    axes = {name: 0 for name in stored(onnx.load(str(transformer))) if is_linear(name)}
    if not how.startswith("dynamic"):  # those of Gemm
        axes |= {"bert.pooler.dense.weight": 1, "classifier.weight": 1}
    assert len(axes) == 8
    check_pruned(source, tmp_path / "out.onnx", axes, how, feeds)


def is_linear(name: str) -> bool:
    """Whether it is the matrix of a linear layer of BERT."""
    named = name.endswith(".weight") and "embeddings" not in name
    return named and "LayerNorm" not in name


@pytest.fixture(scope="module")
def transformer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample ``stdlib-bert`` with one narrow layer, exported."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("onnxscript")
    pytest.importorskip("transformers")
    from step_cli.formats.onnx.exporter import export_onnx
    from step_cli.formats.onnx.inputs import GraphInput
    from step_cli.models.spec import build_model

    torch.manual_seed(0)
    built = build_model("sample:stdlib-bert", {"layers": 1, "width": 32})
    examples = {"input_ids": torch.arange(1, 65).unsqueeze(0)}
    inputs = [GraphInput("input_ids", "int64", (1, 64))]
    path = tmp_path_factory.mktemp("bert") / "m.onnx"
    export_onnx(built.model.eval(), inputs, examples, {}, path)
    model = onnx.load(str(path))
    del model.metadata_props[:]  # its plan has no layer
    onnx.save(model, str(path))
    return path


@pytest.mark.parametrize("how", WAYS)
def test_a_model_that_was_sparse_before_is_not_changed(
    how: str, tmp_path: Path
) -> None:
    x = conv_net(tmp_path / "dense.onnx")
    step_cli.prune(tmp_path / "dense.onnx", tmp_path / "m.onnx")
    source = quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", how, {"x": x})
    found = verified(source)
    assert found.ok and found.totals.layers == 3 and found.totals.coverage == 1
    report = step_cli.prune(source, tmp_path / "out.onnx")
    assert report.totals.changed == 0
    assert verified(tmp_path / "out.onnx", baseline=source).ok
    old, new = (stored(onnx.load(str(p))) for p in (source, tmp_path / "out.onnx"))
    assert old.keys() == new.keys()
    for name, array in old.items():
        np.testing.assert_array_equal(array, new[name])
    # One code of a group that is none of zero.
    model = onnx.load(str(tmp_path / "out.onnx"))
    tensor = next(t for t in model.graph.initializer if t.name == "c2_quantized")
    codes = onnx.numpy_helper.to_array(tensor).copy()
    codes[:, :4] = 9
    tensor.CopyFrom(onnx.numpy_helper.from_array(codes, tensor.name))
    onnx.save(model, str(tmp_path / "bad.onnx"))
    bad = verified(tmp_path / "bad.onnx", baseline=source)
    assert [one.name for one in bad.layers if not one.ok] == ["c2_quantized"]
    assert [one.name for one in bad.layers if one.violations] == ["c2_quantized"]


@pytest.mark.parametrize("how", ["dynamic-int8", "QDQ-int8"])
def test_the_plan_of_before_it_was_quantized_holds(how: str, tmp_path: Path) -> None:
    x = mlp(tmp_path / "dense.onnx")
    step_cli.prune(tmp_path / "dense.onnx", tmp_path / "m.onnx", nm="1:4")
    source = quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", how, {"x": x})
    found = verified(source)
    assert found.ok and {one.pattern for one in found.layers} == {"1:4"}
    assert {one.axis_from for one in found.layers} == {"plan"}
    turned = how == "dynamic-int8"
    assert [one.axis for one in found.layers] == [0 if turned else 1, 0]
    report = step_cli.prune(source, tmp_path / "out.onnx")
    assert {one.name for one in report.layers} == {"w1_quantized", "w2_quantized"}
    assert verified(tmp_path / "out.onnx").ok
    # A plan of another model is refused still.
    model = onnx.load(str(source))
    entry = next(one for one in model.metadata_props if one.key == KEY)
    entry.value = plan_json({"w3": NMSpec(NMPattern(2, 4), 0)})
    onnx.save(model, str(source))
    report = step_cli.verify(source)
    assert report.exit_code == 4


@pytest.mark.parametrize("how", WAYS)
@pytest.mark.parametrize("model", [mlp, conv_net])
def test_what_the_runtime_has_fused_is_pruned_alike(
    model: Callable[[Path], Array], how: str, tmp_path: Path
) -> None:
    """As by its optimizer, which writes operators of its own, in its own layout."""
    x = model(tmp_path / "m.onnx")
    source = quantize(tmp_path / "m.onnx", tmp_path / "q.onnx", how, {"x": x})
    step_cli.prune(source, tmp_path / "out.onnx")
    fused = optimized(source, tmp_path / "fused.onnx")
    before = verified(fused)
    assert before.totals.coverage == 1 and not any(one.ok for one in before.layers)
    step_cli.prune(fused, tmp_path / "fused-out.onnx")
    assert verified(tmp_path / "fused-out.onnx", strict=True).ok
    expected = onnx.load(str(optimized(tmp_path / "out.onnx", tmp_path / "e.onnx")))
    found = onnx.load(str(tmp_path / "fused-out.onnx"))
    names = [one.name for one in before.layers]
    for name in names:
        np.testing.assert_array_equal(stored(found)[name], stored(expected)[name])
    np.testing.assert_array_equal(run(found, {"x": x}), run(expected, {"x": x}))


def optimized(source: Path, target: Path) -> Path:
    """What ONNX Runtime makes of a file before it runs it."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(target)
    ort.InferenceSession(str(source), options, providers=["CPUExecutionProvider"])
    return target
