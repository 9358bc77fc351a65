"""Real builds with TensorRT-RTX, which needs no GPU; they prove nothing on sparsity."""

import hashlib
import signal
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import onnx.helper
import onnx.numpy_helper
import pytest

from step_cli.errors import InputError, MissingError, StepError, UsageError
from step_cli.formats.cuda_device import compute_capabilities
from step_cli.formats.trt_api import TrtRuntime, find_runtime
from step_cli.formats.trt_engine import EngineOptions, build_engine
from step_cli.formats.trt_failures import crashed, explain
from step_cli.formats.trt_ladder import rungs
from step_cli.formats.trt_log import parse_log
from step_cli.formats.trt_profiles import Profile

ONNX_TYPE = onnx.TensorProto.FLOAT16


@pytest.fixture(scope="module")
def rtx() -> TrtRuntime:
    pytest.importorskip("tensorrt_rtx")
    return find_runtime("tensorrt-rtx")


def save_mlp(path: Path, batch: int | str = 8, data: str | None = None) -> Path:
    """Two fp16 MatMuls whose weights are 2:4 along axis 0."""
    weights = {}
    for seed, name in enumerate(("up.weight", "down.weight")):
        values = np.random.default_rng(seed).normal(size=(64, 64)) + 3
        values.reshape(16, 4, 64)[:, :2] = 0
        weights[name] = values.astype(np.float16)
    nodes = [
        onnx.helper.make_node("MatMul", ["x", "up.weight"], ["h"], name="up"),
        onnx.helper.make_node("Relu", ["h"], ["r"], name="relu"),
        onnx.helper.make_node("MatMul", ["r", "down.weight"], ["y"], name="down"),
    ]
    graph = onnx.helper.make_graph(
        nodes,
        "mlp",
        [onnx.helper.make_tensor_value_info("x", ONNX_TYPE, [batch, 64])],
        [onnx.helper.make_tensor_value_info("y", ONNX_TYPE, [batch, 64])],
        [onnx.numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return save_graph(path, graph, data)


def save_graph(path: Path, graph: onnx.GraphProto, data: str | None = None) -> Path:
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10
    )
    if data is None:
        onnx.save(model, path)
    else:
        onnx.save(
            model, path, save_as_external_data=True, location=data, size_threshold=0
        )
    return path


def save_one_node(path: Path, op: str, domain: str = "") -> Path:
    info = onnx.helper.make_tensor_value_info
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node(op, ["x"], ["y"], domain=domain)],
        "one",
        [info("x", onnx.TensorProto.FLOAT, ["batch", 4])],
        [info("y", onnx.TensorProto.FLOAT, None)],
    )
    return save_graph(path, graph)


@pytest.mark.tensorrt
@pytest.mark.parametrize("target", ["8.0", "8.6", "8.9"])
def test_builds_give_the_same_bytes_and_name_each_module(
    rtx: TrtRuntime, tmp_path: Path, target: str
) -> None:
    source, plan = save_mlp(tmp_path / "m.onnx"), tmp_path / "m.plan"
    options = EngineOptions(compute_capabilities=[target])
    first = build_engine(rtx, source, plan, options)
    second = build_engine(rtx, source, plan, options)
    assert first.sha256 == second.sha256
    assert first.sha256 == hashlib.sha256(plan.read_bytes()).hexdigest()
    assert first.size_bytes == plan.stat().st_size > 64 * 64 * 2
    seen = {name for layer in parse_log(first.log).layers for name in layer.onnx_names}
    assert {"up", "down"} <= seen


@pytest.mark.tensorrt
@pytest.mark.parametrize("target", ["8.0", "8.6", "8.9"])
def test_tripwire_rtx_still_ignores_the_sparsity_flag(
    rtx: TrtRuntime, tmp_path: Path, target: str
) -> None:
    """A failure here is news: TensorRT-RTX has begun to honour sparse weights."""
    source, plan = save_mlp(tmp_path / "m.onnx"), tmp_path / "m.plan"
    builds = [
        build_engine(
            rtx, source, plan, EngineOptions(sparse=on, compute_capabilities=[target])
        )
        for on in (True, False)
    ]
    assert builds[0].sha256 == builds[1].sha256
    assert "(Sparsity)" not in builds[0].log


@pytest.mark.tensorrt
def test_several_targets_and_dynamic_shapes_in_one_plan(
    rtx: TrtRuntime, tmp_path: Path
) -> None:
    source = save_mlp(tmp_path / "m.onnx", batch="batch")
    options = EngineOptions(
        profiles=[Profile("x", ((1, 64), (8, 64), (16, 64)))],
        compute_capabilities=["8.0", "8.6", "8.9"],
    )
    assert build_engine(rtx, source, tmp_path / "m.plan", options).size_bytes > 0


@pytest.mark.tensorrt
def test_external_data_is_found_from_another_directory(
    rtx: TrtRuntime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = save_mlp(tmp_path / "m.onnx", data="m.onnx.data")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    build_engine(rtx, source, tmp_path / "m.plan", EngineOptions())
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(InputError, match="external data file is missing"):
        build_engine(rtx, source, tmp_path / "n.plan", EngineOptions())
    assert not (tmp_path / "n.plan").exists()


@pytest.mark.tensorrt
@pytest.mark.parametrize(
    ("content", "kind", "message"),
    [
        (b"garbage" * 30, InputError, "Failed to parse the ONNX model"),
        (b"", InputError, "has no layers or no output"),
    ],
)
def test_files_that_are_no_models_are_refused(
    rtx: TrtRuntime,
    tmp_path: Path,
    content: bytes,
    kind: type[StepError],
    message: str,
) -> None:
    source = tmp_path / "m.onnx"
    source.write_bytes(content)
    with pytest.raises(kind, match=message):
        build_engine(rtx, source, tmp_path / "m.plan", EngineOptions())


@pytest.mark.tensorrt
def test_an_unknown_operator_is_an_input_error(rtx: TrtRuntime, tmp_path: Path) -> None:
    source = save_one_node(tmp_path / "m.onnx", "Nonsense", domain="a.b")
    with pytest.raises(InputError, match="operator that this TensorRT does not know"):
        build_engine(rtx, source, tmp_path / "m.plan", EngineOptions())


@pytest.mark.tensorrt
@pytest.mark.parametrize(
    ("profiles", "message"),
    [
        ([], "dynamic size; give --min"),
        ([Profile("x", ((4, 4), (2, 4), (8, 4)))], "expected min <= opt <= max"),
        ([Profile("z", ((1, 4), (2, 4), (8, 4)))], "an input has no shapes"),
        ([Profile("x", ((1, 5), (2, 5), (8, 5)))], "does not fit the fixed sizes"),
    ],
)
def test_wrong_profiles_are_usage_errors(
    rtx: TrtRuntime, tmp_path: Path, profiles: Sequence[Profile], message: str
) -> None:
    source = save_one_node(tmp_path / "m.onnx", "Relu")
    with pytest.raises(UsageError, match=message):
        build_engine(rtx, source, tmp_path / "m.plan", EngineOptions(profiles=profiles))


@pytest.mark.tensorrt
def test_too_little_workspace_is_a_usage_error(rtx: TrtRuntime, tmp_path: Path) -> None:
    source = save_mlp(tmp_path / "m.onnx")
    with pytest.raises(UsageError, match="raise --workspace"):
        build_engine(rtx, source, tmp_path / "m.plan", EngineOptions(workspace_mib=1))


RECORDED_FAILURES = [  # from TensorRT-RTX 1.7.1; source locations cut as `...`
    (
        "IBuilder::buildSerializedNetwork: Error Code 4: API Usage Error "
        "(Network must have at least one output. ...)",
        InputError,
    ),
    (
        "IBuilder::buildSerializedNetwork: Error Code 1: Myelin ([pass.cpp:1500: "
        "run_passes] Cannot compile for target(s) sm75, because the model contains "
        "HW-specific datatypes: b16. ...)",
        InputError,
    ),
    (
        "Internal Error: MyelinCheckException: graph_jit.cpp:278: "
        "CHECK(status == CUDA_SUCCESS) failed.",
        MissingError,
    ),
    ("generateForCurrent ... cudaError 35", MissingError),
    ("TypeError: pybind11::init(): factory function returned nullptr", MissingError),
    ("something nobody has seen", InputError),
]


@pytest.mark.parametrize(("record", "kind"), RECORDED_FAILURES)
def test_failures_become_one_error_of_the_right_kind(
    record: str, kind: type[StepError]
) -> None:
    error = explain(["noise", record], file="m.onnx")
    assert type(error) is kind
    assert "\n" not in error.message
    assert record[:40] in error.message


def test_a_crash_is_the_models_fault_and_a_kill_the_machines() -> None:
    crash = crashed(signal.SIGSEGV, file="m.onnx")
    assert crash.exit_code == 4
    assert "the builder crashed on this model" in crash.message
    assert crashed(signal.SIGKILL, file="m.onnx").exit_code == 6


def test_a_child_that_segfaults_is_reported_as_a_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = tmp_path / "library"
    library.mkdir()
    (library / "crashing_trt.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(library))
    monkeypatch.syspath_prepend(library)
    module = type(pytest)("crashing_trt")
    runtime = TrtRuntime(module, "tensorrt-rtx")
    with pytest.raises(InputError, match="the builder crashed"):
        build_engine(runtime, tmp_path / "m.onnx", tmp_path / "m.plan", EngineOptions())


@pytest.mark.tensorrt
def test_a_failed_build_leaves_no_trace_in_the_next(
    rtx: TrtRuntime, tmp_path: Path
) -> None:
    source, plan = save_mlp(tmp_path / "m.onnx"), tmp_path / "m.plan"
    fresh = build_engine(rtx, source, plan, EngineOptions()).sha256
    with pytest.raises(UsageError):
        build_engine(rtx, source, plan, EngineOptions(workspace_mib=1))
    assert build_engine(rtx, source, plan, EngineOptions()).sha256 == fresh


@pytest.mark.gpu
@pytest.mark.tensorrt
def test_full_tensorrt_names_eligible_layers(tmp_path: Path) -> None:
    """Runs on a machine with a GPU and TensorRT 10 or 11; recorded on none so far."""
    pytest.importorskip("tensorrt")
    if not compute_capabilities():
        pytest.skip("no GPU")
    source = save_mlp(tmp_path / "m.onnx")
    build = build_engine(
        find_runtime("tensorrt"), source, tmp_path / "m.plan", EngineOptions()
    )
    log = parse_log(build.log)
    assert log.pairs, "the builder says nothing of sparsity: has its wording changed?"
    assert rungs(log, "up").eligible is True
