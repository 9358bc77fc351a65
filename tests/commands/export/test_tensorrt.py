"""`export --to tensorrt`: real engines of TensorRT-RTX, and the evidence on fakes."""

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import forks
import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from commands.export.exporting import left_in, run, save_family

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from step_cli.commands.export import bench as export_bench  # noqa: E402
from step_cli.commands.export import run as export  # noqa: E402
from step_cli.commands.export import tensorrt as export_tensorrt  # noqa: E402
from step_cli.config.commands import ExportConfig  # noqa: E402
from step_cli.errors import (  # noqa: E402
    MissingError,
    StepError,
    UsageError,
)
from step_cli.formats.open import open_checkpoint  # noqa: E402
from step_cli.formats.tensorrt import api as trt_api  # noqa: E402
from step_cli.formats.tensorrt.api import TrtRuntime  # noqa: E402
from step_cli.formats.tensorrt.engine import EngineBuild  # noqa: E402
from step_cli.formats.tensorrt.evidence import parse_log  # noqa: E402


@pytest.fixture
def rtx() -> None:
    pytest.importorskip("tensorrt_rtx")


@pytest.mark.tensorrt
@pytest.mark.usefixtures("rtx")
def test_an_engine_comes_with_its_report_and_log(net: Path, tmp_path: Path) -> None:
    out = tmp_path / "m.plan"
    report = run(
        net, out, "tensorrt", compute_capability=["8.6"], backend="tensorrt-rtx"
    )
    assert report.ok
    assert left_in(tmp_path) == ["m.plan", "m.plan.build.log", "m.plan.report.json"]
    assert report.backend is not None
    assert report.backend.sparse_weights == "ignored"
    assert report.backend.compute_capabilities == ["8.6"]
    assert report.precision == "fp16"
    assert [
        (layer.pattern_ok, layer.eligible, layer.chosen) for layer in report.layers
    ] == [(True, None, None)] * 2
    assert "sparse tends to win from 256" in str(report.layers[0].advice)
    assert any("runs dense" in note for note in report.notes)
    assert "--sparsity=enable" in str(report.trtexec)
    assert json.loads((tmp_path / "m.plan.report.json").read_text()) == json.loads(
        report.document()
    )
    assert "up" in (tmp_path / "m.plan.build.log").read_text()


@pytest.mark.tensorrt
@pytest.mark.usefixtures("rtx")
def test_an_engine_from_an_onnx_file_needs_no_model(
    exported: Path, tmp_path: Path
) -> None:
    # As the command line gives them: switches are always there.
    switches = {"no_check": False, "bench": False, "require_sparse": False}
    config = ExportConfig(
        checkpoint=exported, out=tmp_path / "m.plan", to="tensorrt", **switches
    )
    report = export.run(config)
    assert report.ok
    assert report.parity is None
    assert f"--onnx={exported}" in str(report.trtexec)
    for name, value in (("precision", "fp16"), ("model", "sample:digits-resnet")):
        with pytest.raises(UsageError, match=f"--{name} has no meaning"):
            export.run(config.model_copy(update={name: value, "force": True}))


@pytest.mark.tensorrt
@pytest.mark.usefixtures("rtx")
def test_sizes_that_nobody_gives_are_stated_in_the_report(
    net: Path, tmp_path: Path
) -> None:
    dynamic = ["x:float32:batch,4,16"]
    report = run(net, tmp_path / "m.plan", "tensorrt", input=dynamic)
    assert report.ok
    (shapes,) = report.shapes
    assert shapes.by_default and shapes.input == "x"
    assert [shapes.min, shapes.opt, shapes.max] == [[n, 4, 16] for n in (1, 8, 32)]
    assert any("x 1x4x16, 8x4x16, 32x4x16" in note for note in report.notes)
    assert "--optShapes=x:8x4x16" in str(report.trtexec)
    given = run(net, tmp_path / "n.plan", "tensorrt", input=dynamic, opt=["x:2x4x16"])
    assert [(one.opt, one.by_default) for one in given.shapes] == [([2, 4, 16], False)]
    assert not any("by default" in note for note in given.notes)


@pytest.mark.usefixtures("rtx")
@pytest.mark.tensorrt
@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"require_sparse": True}, MissingError, "--require-sparse: .* ignores sparse"),
        ({"compute_capability": ["9.0"]}, MissingError, r"does not build for 9\.0"),
        (
            {"compute_capability": ["9.0"], "backend": "tensorrt-rtx"},
            UsageError,
            r"does not build for 9\.0",
        ),
        ({"input": ["x:float32:batch,n,16"]}, UsageError, "has a dynamic size"),
        (
            {"input": ["x:float32:batch,4,16"], "opt": ["y:1x4x16"]},
            UsageError,
            "no input y",
        ),
    ],
)
def test_engines_that_cannot_be_built_are_refused_early(
    net: Path,
    tmp_path: Path,
    options: dict[str, Any],
    kind: type[StepError],
    message: str,
) -> None:
    with pytest.raises(kind, match=message):
        run(net, tmp_path / "m.plan", "tensorrt", **options)
    assert left_in(tmp_path) == []


def test_without_a_backend_it_says_what_to_install_and_to_run(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, _ in trt_api.MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    config = ExportConfig(checkpoint=exported, out=tmp_path / "m.plan", to="tensorrt")
    with pytest.raises(MissingError) as caught:
        export.run(config)
    assert "step-cli export" not in caught.value.message
    assert "pip install 'step-cli[tensorrt-rtx]'" in caught.value.message
    assert f"trtexec --onnx={exported} --saveEngine=" in caught.value.message
    assert left_in(tmp_path) == []


def test_the_commands_for_another_machine_work_as_they_are(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are run here up to trtexec, whose ONNX file they make."""
    for name, _ in trt_api.MODULES:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingError) as caught:
        run(net, tmp_path / "m y.plan", "tensorrt", exclude=["head.*"], opset=18)
    commands = caught.value.message.partition("on a GPU machine: ")[2]
    words = shlex.split(commands.replace(", then trtexec", " ; trtexec"))
    first, second = words[: words.index(";")], words[words.index(";") + 1 :]
    assert first[0] == "step-cli"
    done = forks.run([sys.executable, "-m", "step_cli", *first[1:]])
    assert done.returncode == 0
    made = tmp_path / "m y.onnx"
    assert f"--onnx={made}" in second
    assert list(open_checkpoint(made).plan or {}) == ["up.weight"]
    assert onnx.load(str(made)).opset_import[0].version == 18


# CONSTRUCTED from documented formats: no GPU made these lines.
SPARSE_LOG = """\
VERBOSE: (Sparsity) Found 2 layer(s) eligible to use sparse tactics: up, head
VERBOSE: (Sparsity) Chose {count} layer(s) using sparse tactics{names}
"""


@pytest.mark.parametrize("chosen", [1, 0])
def test_the_evidence_and_require_sparse_follow_the_log(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: int
) -> None:
    """A fake build shows how evidence is judged; it is no evidence of sparsity."""
    names = ": up" if chosen else ""
    log = SPARSE_LOG.format(count=chosen, names=names)

    def pretend(runtime: Any, source: Path, plan: Path, options: Any) -> EngineBuild:
        assert options.sparse
        plan.write_bytes(b"plan")
        return EngineBuild(log, (), "0" * 64, 4, None, ())

    runtime = TrtRuntime(type(sys)("tensorrt"), "tensorrt")
    monkeypatch.setattr(export_tensorrt, "build_engine", pretend)
    monkeypatch.setattr(export_tensorrt, "find_runtime", lambda wanted: runtime)
    fp16 = tmp_path / "fp16.onnx"
    model = onnx.load(str(exported))
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, str(fp16))
    config = ExportConfig(
        checkpoint=fp16, out=tmp_path / "m.plan", to="tensorrt", require_sparse=True
    )
    report = export.run(config)
    layers = {layer.name: layer for layer in report.layers}
    assert report.backend is not None
    assert (layers["up.weight"].eligible, layers["up.weight"].chosen) == (
        True,
        bool(chosen),
    )
    assert layers["head.weight"].chosen is False
    assert report.backend.sparse_weights == ("used" if chosen else "permitted")
    assert report.exit_code == (0 if chosen else 1)
    assert (tmp_path / "m.plan").exists() == bool(chosen)


def test_bench_times_both_engines_where_there_is_a_gpu(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same graph is built twice, with sparse weights and without; all is faked."""
    times = {b"sparse": 1.5, b"dense": 2.5}

    def pretend(runtime: Any, source: Path, plan: Path, options: Any) -> EngineBuild:
        plan.write_bytes(b"sparse" if options.sparse else b"dense")
        return EngineBuild("", (), "0" * 64, 5, None, ())

    def clock(runtime: Any, plan: Path, sha256: str, shapes: Any) -> float:
        return times[plan.read_bytes()]

    runtime = TrtRuntime(type(sys)("tensorrt"), "tensorrt")
    monkeypatch.setattr(export_tensorrt, "build_engine", pretend)
    monkeypatch.setattr(export_tensorrt, "find_runtime", lambda wanted: runtime)
    monkeypatch.setattr(export_bench, "build_engine", pretend)
    monkeypatch.setattr(export_bench, "engine_ms", clock)
    config = ExportConfig(
        checkpoint=exported,
        out=tmp_path / "m.plan",
        to="tensorrt",
        bench=True,
        force=True,
    )
    monkeypatch.setattr(export_bench, "compute_capabilities", list)
    bench = export.run(config).bench  # no GPU: the ONNX file is timed instead
    assert bench is not None
    assert bench.runtime == "ONNX Runtime, CPU"
    assert bench.sparse_ms > 0 < bench.dense_ms
    monkeypatch.setattr(export_bench, "compute_capabilities", lambda: ["8.6"])
    bench = export.run(config).bench
    assert bench is not None
    assert (bench.sparse_ms, bench.dense_ms) == (1.5, 2.5)
    assert bench.runtime == "tensorrt unknown, GPU of compute capability 8.6"
    assert (tmp_path / "m.plan").read_bytes() == b"sparse"


@pytest.mark.slow
@pytest.mark.tensorrt
@pytest.mark.usefixtures("rtx")
@pytest.mark.parametrize("family", ["gpt2", "vit", "bert"])
def test_engines_of_hugging_face_models_name_each_module(
    tmp_path: Path, family: str
) -> None:
    """For 8.0, 8.6 and 8.9 in one plan; a failed target does not change the next."""
    pytest.importorskip("transformers")
    save_family(tmp_path / family, family)
    sizes = ["input_ids:2x8", "attention_mask:2x8"]
    config = ExportConfig(
        checkpoint=tmp_path / family,
        out=tmp_path / "m.plan",
        to="tensorrt",
        backend="tensorrt-rtx",
        compute_capability=["8.0", "8.6", "8.9"],
        exclude=["*patch_embeddings*", "lm_head.*"],
        opt=["pixel_values:2x3x16x16"] if family == "vit" else sizes,
        force=True,
    )
    first = export.run(config)
    assert first.ok and first.backend is not None
    assert first.backend.compute_capabilities == ["8.0", "8.6", "8.9"]
    log = parse_log((tmp_path / "m.plan.build.log").read_text())
    seen = {name for layer in log.layers for name in layer.onnx_names}
    nodes = {str(layer.onnx_name).removesuffix(".weight") for layer in first.layers}
    assert nodes <= seen
    small = config.model_copy(update={"compute_capability": ["7.5"], "workspace": 1})
    with pytest.raises(StepError):
        export.run(small)
    assert export.run(config).sha256 == first.sha256
