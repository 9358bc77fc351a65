"""Real builds with TensorRT-RTX, which needs no GPU; they prove nothing on sparsity."""

import hashlib
from pathlib import Path

import pytest
from formats.onnx.small_graphs import MODELS, save_mlp

from step_cli.errors import InputError, UsageError
from step_cli.formats.tensorrt.api import TrtRuntime, compute_capabilities, find_runtime
from step_cli.formats.tensorrt.engine import EngineOptions, build_engine
from step_cli.formats.tensorrt.evidence import evidence_of, parse_log
from step_cli.formats.tensorrt.profiles import Profile


@pytest.fixture(scope="module")
def rtx() -> TrtRuntime:
    pytest.importorskip("tensorrt_rtx")
    return find_runtime("tensorrt-rtx")


@pytest.mark.tensorrt
@pytest.mark.parametrize(
    ("model", "target"),
    [("mlp", "8.0"), ("mlp", "8.6"), ("mlp", "8.9"), ("convs", "8.6"), ("mlp", "12.0")],
)
def test_builds_give_the_same_bytes_and_name_each_module(
    rtx: TrtRuntime, tmp_path: Path, model: str, target: str
) -> None:
    save, modules = MODELS[model]
    source, plan = save(tmp_path / "m.onnx"), tmp_path / "m.plan"
    options = EngineOptions(compute_capabilities=[target])
    first = build_engine(rtx, source, plan, options)
    second = build_engine(rtx, source, plan, options)
    assert first.sha256 == second.sha256
    assert first.sha256 == hashlib.sha256(plan.read_bytes()).hexdigest()
    assert first.size_bytes == plan.stat().st_size > 64 * 64 * 2
    seen = {name for layer in parse_log(first.log).layers for name in layer.onnx_names}
    assert modules <= seen


@pytest.mark.tensorrt
@pytest.mark.parametrize(
    ("model", "target"),
    [("mlp", "8.0"), ("mlp", "8.6"), ("mlp", "8.9"), ("convs", "8.0")],
)
def test_tripwire_rtx_still_ignores_the_sparsity_flag(
    rtx: TrtRuntime, tmp_path: Path, model: str, target: str
) -> None:
    """A failure here is news: TensorRT-RTX has begun to honour sparse weights."""
    source, plan = MODELS[model][0](tmp_path / "m.onnx"), tmp_path / "m.plan"
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
    assert evidence_of(log, "up").eligible is True
