"""What a build that fails means: real failures of TensorRT-RTX, and recorded ones."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
import onnx.helper
import onnx.numpy_helper
import pytest
from formats.onnx.small_graphs import save_graph, save_mlp, save_one_node

from step_cli.errors import InputError, MissingError, StepError, UsageError
from step_cli.formats.tensorrt.api import TrtRuntime, find_runtime
from step_cli.formats.tensorrt.engine import EngineOptions, build_engine
from step_cli.formats.tensorrt.failures import crashed, explain
from step_cli.formats.tensorrt.profiles import Profile


@pytest.fixture(scope="module")
def rtx() -> TrtRuntime:
    pytest.importorskip("tensorrt_rtx")
    return find_runtime("tensorrt-rtx")


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
def test_a_missing_file_is_an_input_error(rtx: TrtRuntime, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        build_engine(rtx, tmp_path / "no.onnx", tmp_path / "m.plan", EngineOptions())


@pytest.mark.tensorrt
def test_a_type_that_the_target_lacks_is_an_input_error(
    rtx: TrtRuntime, tmp_path: Path
) -> None:
    bf16 = onnx.TensorProto.BFLOAT16
    info, make = onnx.helper.make_tensor_value_info, onnx.helper.make_tensor
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMul", ["x", "w"], ["y"])],
        "bf16",
        [info("x", bf16, [4, 16])],
        [info("y", bf16, [4, 16])],
        [make("w", bf16, [16, 16], [1.0] * 256)],
    )
    source, plan = save_graph(tmp_path / "m.onnx", graph), tmp_path / "m.plan"
    options = EngineOptions(compute_capabilities=["8.0"])
    assert build_engine(rtx, source, plan, options).size_bytes > 0
    with pytest.raises(InputError, match="the target lacks a data type"):
        build_engine(rtx, source, plan, EngineOptions(compute_capabilities=["7.5"]))


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


PARENT = """
import sys, types
from pathlib import Path
from step_cli.formats.tensorrt.api import TrtRuntime
from step_cli.formats.tensorrt.engine import EngineOptions, build_engine
runtime = TrtRuntime(types.ModuleType("slow_trt"), "tensorrt")
build_engine(runtime, Path("m.onnx"), Path("m.plan"), EngineOptions())
"""
SLOW = """
import os, time
open("pid", "w").write(str(os.getpid()) + ".")
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="Linux alone ends orphans")
def test_a_build_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "slow_trt.py").write_text(SLOW)
    child = tmp_path / "pid"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], cwd=tmp_path, env=environment
    ) as parent:
        wait_for(lambda: child.exists() and child.read_text().endswith("."))
        status = Path(f"/proc/{child.read_text()[:-1]}/stat")
        assert status.exists() and ") Z" not in status.read_text()
        parent.kill()
    wait_for(lambda: not status.exists() or ") Z" in status.read_text())


def wait_for(true: Callable[[], bool]) -> None:
    for _ in range(600):
        if true():
            return
        time.sleep(0.05)
    pytest.fail("waited for 30 s")
