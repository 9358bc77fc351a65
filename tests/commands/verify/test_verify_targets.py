"""`verify-nm --target`: libraries beside the verdict, which they do not change."""

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

import step_cli
from step_cli.reports import CheckpointVerdict


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sparse(*shape: int, axis: int = 1, dtype: object = np.float16) -> np.ndarray:
    weights = np.zeros(shape, dtype)
    where = [slice(None)] * len(shape)
    for start in (0, 1):
        where[axis] = slice(start, None, 4)
        weights[tuple(where)] = 1
    return weights


def checked(
    tensors: dict[str, np.ndarray], config: object = None, **options: object
) -> CheckpointVerdict:
    Path("model").mkdir()
    save_file(tensors, "model/model.safetensors")
    if config is not None:
        Path("model/config.json").write_text(json.dumps(config))
    [verdict] = step_cli.verify("model", **options).checkpoints
    return verdict


def test_each_target_has_a_view_and_none_changes_the_verdict() -> None:
    tensors = {"fc.weight": sparse(512, 512), "small.weight": sparse(8, 16)}
    verdict = checked(tensors, target=["torch", "cusparselt", "torch"])
    assert verdict.ok
    fc, small = verdict.layers
    assert fc.targets is not None and small.targets is not None
    assert list(fc.targets) == ["torch", "cusparselt"]
    assert fc.targets["torch"].likely and not small.targets["torch"].possible
    assert fc.tensorrt is None


def test_tensorrt_is_short_for_the_first_target() -> None:
    verdict = checked({"fc.weight": sparse(512, 512)}, tensorrt=True)
    [layer] = verdict.layers
    assert layer.targets is not None and layer.tensorrt is not None
    assert layer.targets["tensorrt"].model_dump() == layer.tensorrt.model_dump()


def test_without_a_target_there_is_no_view() -> None:
    [layer] = checked({"fc.weight": sparse(512, 512)}).layers
    assert layer.targets is None and layer.tensorrt is None


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(ValueError, match="target"):
        checked({"fc.weight": sparse(8, 8)}, target=["cublas"])


def test_a_layer_that_fails_is_judged_too() -> None:
    verdict = checked({"fc.weight": np.ones((512, 512), np.float16)}, tensorrt=True)
    [layer] = verdict.layers
    assert not verdict.ok and layer.targets is not None
    assert "not 2:4" in (layer.targets["tensorrt"].advice or "")


def test_the_configuration_tells_inputs_and_outputs() -> None:
    name = "model.layers.0.mlp.experts.gate_up_proj"
    weights = sparse(2, 512, 320, axis=1, dtype=ml_dtypes.bfloat16)
    verdict = checked({name: weights}, {"model_type": "gpt_oss"}, target=["tensorrt"])
    [layer] = verdict.layers
    assert layer.axis == 1 and layer.targets is not None
    assert layer.targets["tensorrt"].likely


def test_an_axis_that_the_user_gives_is_not_how_the_layer_is_used() -> None:
    weights = np.ascontiguousarray(sparse(512, 512).T)
    verdict = checked({"fc.weight": weights}, axis=["fc.*=0"], target=["tensorrt"])
    [layer] = verdict.layers
    assert layer.ok and layer.targets is not None
    assert not layer.targets["tensorrt"].possible


PLUGIN = {"build_config": {"plugin_config": {"gemm_plugin": "float16"}}}


@pytest.mark.parametrize(
    ("config", "target", "said"),
    [
        (PLUGIN, "tensorrt", True),
        (PLUGIN, "torch", False),
        ({"build_config": {"plugin_config": {"gemm_plugin": None}}}, "tensorrt", False),
        ({"plugin_config": {"gemm_plugin": "auto"}}, "tensorrt", True),
        ({"plugin_config": ["gemm_plugin"]}, "tensorrt", False),
        (None, "tensorrt", False),
    ],
)
def test_gemms_of_a_plugin_are_never_sparse(
    config: object, target: str, said: bool
) -> None:
    verdict = checked({"fc.weight": sparse(512, 512)}, config, target=[target])
    assert verdict.ok
    assert any("gemm_plugin" in note for note in verdict.notes) == said
