"""`export --to onnx`, from runs, code of the user's and Hugging Face."""

import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import numpy as np
import onnx
import onnx.numpy_helper
import pytest
from commands.export.exporting import NET, left_in, run, save_family

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from step_cli.commands.export import onnx as export_onnx  # noqa: E402
from step_cli.commands.export import run as export  # noqa: E402
from step_cli.commands.export.model import cast  # noqa: E402
from step_cli.config.commands import ExportConfig  # noqa: E402
from step_cli.errors import (  # noqa: E402
    InputError,
    NonFiniteError,
    StepError,
    StoppedError,
    UsageError,
)
from step_cli.formats.onnx.inputs import inputs_of_onnx  # noqa: E402
from step_cli.formats.open import open_checkpoint  # noqa: E402
from step_cli.formats.plan import KEY, plan_json  # noqa: E402
from step_cli.formats.pytorch.arrays import to_array  # noqa: E402
from step_cli.formats.safetensors.writer import save_safetensors  # noqa: E402
from step_cli.formats.tensorrt import api as trt_api  # noqa: E402
from step_cli.models.source import ModelSource, write_source  # noqa: E402
from step_cli.nm.pattern import NMPattern, NMSpec  # noqa: E402
from step_cli.optim.mask import nm_mask  # noqa: E402


def test_the_onnx_file_is_checked_and_holds_its_pattern(exported: Path) -> None:
    opened = open_checkpoint(exported)
    assert opened.plan == {
        "up.weight": NMSpec(NMPattern(2, 4), 0),
        "head.weight": NMSpec(NMPattern(2, 4), 0),
    }
    assert str(exported.parent).encode() not in exported.read_bytes()
    command = [sys.executable, "-m", "step_cli", "verify-nm", str(exported)]
    assert forks.run(command, torch=False, capture_output=True).returncode == 0


def test_one_changed_weight_in_the_onnx_file_is_found(
    exported: Path, tmp_path: Path
) -> None:
    model = onnx.load(str(exported))
    tensor = next(t for t in model.graph.initializer if t.name == "up.weight")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values[:4, 0] = 1
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, str(tmp_path / "bad.onnx"))
    if not trt_api.importable():
        pytest.skip("no TensorRT to export to")
    report = export.run(
        ExportConfig(
            checkpoint=tmp_path / "bad.onnx", out=tmp_path / "m.plan", to="tensorrt"
        )
    )
    verdicts = {layer.name: layer.pattern_ok for layer in report.layers}
    assert (report.exit_code, verdicts["up.weight"], verdicts["head.weight"]) == (
        1,
        False,
        True,
    )
    assert left_in(tmp_path) == ["bad.onnx"]


@pytest.mark.parametrize("shift", [0, 1e-3, math.nan])
def test_a_parity_missed_publishes_nothing(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shift: float
) -> None:
    real: Callable[..., Any] = export_onnx.reference

    def shifted(*given: Any) -> Any:
        return [array + np.float32(shift) for array in real(*given)]

    monkeypatch.setattr(export_onnx, "reference", shifted)
    report = run(net, tmp_path / "m.onnx")
    assert report.parity is not None
    assert report.exit_code == (0 if shift == 0 else 1)
    assert report.parity.ok == (shift == 0)
    assert left_in(tmp_path) == (["m.onnx"] if shift == 0 else [])


def test_a_graph_that_breaks_the_pattern_publishes_nothing(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = export_onnx.export_onnx

    def careless(*given: Any, **options: Any) -> Any:
        done, path = real(*given, **options), given[4]
        model = onnx.load(str(path))
        for tensor in model.graph.initializer:
            if tensor.name == "head.weight":
                values = onnx.numpy_helper.to_array(tensor)
                dense = np.where(values == 0, np.float32(1e-9), values)
                tensor.CopyFrom(onnx.numpy_helper.from_array(dense, tensor.name))
        onnx.save(model, str(path))
        return done

    monkeypatch.setattr(export_onnx, "export_onnx", careless)
    report = run(net, tmp_path / "m.onnx")
    head, up = report.layers
    assert (report.ok, head.pattern_ok, up.pattern_ok) == (False, False, True)
    assert "along axis 0 of head.weight break 2:4 in the graph" in str(head.advice)
    assert left_in(tmp_path) == []


def test_bf16_is_compared_as_fp32_with_the_same_rounded_weights(
    net: Path, tmp_path: Path
) -> None:
    report = run(net, tmp_path / "m.onnx", precision="bf16")
    assert report.parity is not None
    assert (report.ok, report.parity_precision) == (True, "fp32")
    assert report.parity.tolerance == 5e-2
    assert left_in(tmp_path) == ["m.onnx"]
    tensors = {
        tensor.name: tensor for tensor in open_checkpoint(tmp_path / "m.onnx").tensors
    }
    assert tensors["up.weight"].dtype == "bfloat16"


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"model": None}, UsageError, "pass --model"),
        ({"input": None}, UsageError, "--input: name what the model takes"),
        ({"input": ["z:float32:2x16"]}, UsageError, "takes no z"),
        ({"checkpoint": Path("nowhere")}, InputError, "no such file"),
    ],
)
def test_what_is_not_said_is_asked_for(
    net: Path,
    tmp_path: Path,
    options: dict[str, Any],
    kind: type[StepError],
    message: str,
) -> None:
    with pytest.raises(kind, match=message):
        run(net, tmp_path / "m.onnx", **options)
    assert left_in(tmp_path) == []


def test_weights_of_another_model_are_refused(net: Path, tmp_path: Path) -> None:
    other = tmp_path / "net.py"
    other.write_text(NET.replace("self.head", "self.tail"))
    with pytest.raises(InputError, match=r"the checkpoint lacks|does not know"):
        run(net, tmp_path / "m.onnx", model=f"{other}:build")


def test_code_named_by_a_run_is_never_run(net: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    (run_dir / "model").mkdir(parents=True)
    shutil.copy(net / "m.safetensors", run_dir / "model" / "model.safetensors")
    marker = tmp_path / "it_ran"
    (tmp_path / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    source = f"{tmp_path / 'evil.py'}:build"
    write_source(run_dir / "model", ModelSource(source))
    with pytest.raises(UsageError, match=r"pass --model net\.py:build"):
        run(net, tmp_path / "m.onnx", checkpoint=run_dir, model=None)
    assert not marker.exists()


def test_the_options_of_a_run_go_with_its_own_model_only(
    net: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    (run_dir / "model").mkdir(parents=True)
    shutil.copy(net / "m.safetensors", run_dir / "model" / "model.safetensors")
    for name in ("net.py", "other.py"):
        text = NET.replace("build():", "build(width):\n    assert width == 32")
        (tmp_path / name).write_text(text)
    recorded = ModelSource(f"{tmp_path / 'net.py'}:build", {"width": 32})
    write_source(run_dir / "model", recorded)
    assert run(net, tmp_path / "m.onnx", checkpoint=run_dir, model=recorded.spec).ok
    other = f"{tmp_path / 'other.py'}:build"
    with pytest.raises(UsageError, match="missing a required argument: 'width'"):
        run(net, tmp_path / "n.onnx", checkpoint=run_dir, model=other)


@pytest.mark.parametrize("text", ["{}", '{"schema": "step-cli/model/2"}', "no json"])
def test_a_model_source_that_says_nothing_is_refused(
    net: Path, tmp_path: Path, text: str
) -> None:
    (tmp_path / "run/model").mkdir(parents=True)
    shutil.copy(net / "m.safetensors", tmp_path / "run/model/model.safetensors")
    (tmp_path / "run/model/model.json").write_text(text)
    with pytest.raises(InputError):
        run(net, tmp_path / "m.onnx", checkpoint=tmp_path / "run", model=None)


def test_a_cast_that_overflows_names_tensor_and_value() -> None:
    model = torch.nn.Linear(4, 4)
    with torch.no_grad():
        model.weight[0, 0] = 1e5
    with pytest.raises(NonFiniteError, match="100000 overflows fp16") as caught:
        cast(model, "fp16", Path("m.safetensors"))
    assert caught.value.tensor == "weight"
    cast(model, "bf16", Path("m.safetensors"))
    assert model.weight.dtype == torch.bfloat16


def test_stdout_is_one_document_and_stderr_is_quiet(tmp_path: Path) -> None:
    sample = tmp_path / "run"
    make_sample_run(sample)
    command = [sys.executable, "-m", "step_cli", "export", str(sample)]
    command += [str(tmp_path / "m.onnx"), "--to", "onnx", "--json"]
    done = forks.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["parity"]["ok"]
    assert all(layer["pattern_ok"] for layer in document["layers"])


def make_sample_run(run_dir: Path) -> None:
    from step_cli.models.spec import build_model

    torch.manual_seed(0)
    model = build_model("sample:digits-resnet").model
    plan = {}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1 and weight.shape[1] % 4 == 0:
                weight.mul_(nm_mask(weight.abs(), "2:4", 1))
                plan[name] = NMSpec(NMPattern(2, 4), 1)
    (run_dir / "model").mkdir(parents=True)
    state = {name: to_array(value) for name, value in model.state_dict().items()}
    path = run_dir / "model" / "model.safetensors"
    save_safetensors(path, state, {KEY: plan_json(plan)})
    write_source(run_dir / "model", ModelSource("sample:digits-resnet"))


@pytest.mark.parametrize(
    "family",
    [
        "gpt2",
        "vit",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("bert", "marian")),
    ],
)
def test_hugging_face_models_say_their_own_inputs(tmp_path: Path, family: str) -> None:
    pytest.importorskip("transformers")
    save_family(tmp_path / family, family)
    config = ExportConfig(
        checkpoint=tmp_path / family,
        out=tmp_path / "m.onnx",
        to="onnx",
        exclude=["*patch_embeddings*", "lm_head.*"],
    )
    report = export.run(config)
    assert report.ok
    assert len(report.layers) >= 4
    assert all(layer.pattern_ok for layer in report.layers)
    inputs = [given.name for given in inputs_of_onnx(tmp_path / "m.onnx")]
    text = ["input_ids", "attention_mask"]
    assert inputs == {
        "vit": ["pixel_values"],
        "marian": [*text, "decoder_input_ids"],
    }.get(family, text)
    axes = {layer.name.split(".")[-2]: layer.axis for layer in report.layers}
    assert family != "gpt2" or axes["c_fc"] == 0  # Conv1D: [in, out]


def test_a_hugging_face_model_of_other_inputs_asks_for_them(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    save_family(tmp_path / "clap", "clap")
    config = ExportConfig(
        checkpoint=tmp_path / "clap", out=tmp_path / "m.onnx", to="onnx"
    )
    with pytest.raises(UsageError, match="such as --input "):
        export.run(config)


def test_bench_times_the_file_against_its_dense_twin(net: Path, tmp_path: Path) -> None:
    report = run(net, tmp_path / "m.onnx", bench=True)
    assert report.bench is not None
    assert report.bench.sparse_ms > 0 < report.bench.dense_ms
    assert left_in(tmp_path) == ["m.onnx"]
    with pytest.raises(UsageError, match="no bf16 kernels"):
        run(net, tmp_path / "n.onnx", bench=True, precision="bf16")


def test_a_stop_while_torch_works_stays_a_stop(
    net: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*given: Any, **options: Any) -> None:
        raise RuntimeError("step 1/3 failed") from StoppedError("stopped on request")

    monkeypatch.setattr(torch.onnx, "export", stopped)
    with pytest.raises(StoppedError):
        run(net, tmp_path / "m.onnx")
    assert left_in(tmp_path) == []
