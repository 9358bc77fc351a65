"""The sample models as ONNX: parity, its pattern in the file, and a wrong axis."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")

from plans import plan_for  # noqa: E402

from step_cli.commands.evaluate import evaluate_checkpoint  # noqa: E402
from step_cli.commands.export import run as export  # noqa: E402
from step_cli.commands.verify import run as verify_nm  # noqa: E402
from step_cli.config.commands import ExportConfig, VerifyConfig  # noqa: E402
from step_cli.config.samples import sample_directory  # noqa: E402
from step_cli.config.train import load_config  # noqa: E402
from step_cli.formats.plan import KEY, plan_json  # noqa: E402
from step_cli.formats.pytorch.arrays import to_array  # noqa: E402
from step_cli.formats.safetensors.writer import save_safetensors  # noqa: E402
from step_cli.models.source import ModelSource, write_source  # noqa: E402
from step_cli.models.spec import build_model  # noqa: E402
from step_cli.nm.pattern import NMPattern, NMSpec  # noqa: E402
from step_cli.nm.selection import Selection  # noqa: E402
from step_cli.nm.weight_rule import is_head  # noqa: E402
from step_cli.optim.mask import nm_mask  # noqa: E402
from step_cli.reports import ExportReport  # noqa: E402

SAMPLES: dict[str, dict[str, Any]] = {  # and options that make them small
    "digits-resnet": {},
    "stdlib-gpt": {"layers": 1, "width": 32, "heads": 2},
    "stdlib-bert": {"layers": 1, "width": 32},
    "translate-tiny": {"layers": 1, "width": 32},
}
QUICK = ("digits-resnet", "stdlib-gpt")
MARKED = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)
    for name in SAMPLES
]


def save_run(folder: Path, sample: str, *, wrong: bool = False) -> int:
    """A run of an untrained sample, 2:4 along the group axes or the other ones.

    Returns:
        The number of layers with a plan.
    """
    torch.manual_seed(0)
    source = ModelSource(f"sample:{sample}", SAMPLES[sample])
    model = build_model(source.spec, source.options).model
    plan = {}
    with torch.no_grad():
        weights = dict(model.named_parameters())
        for name, spec in plan_for(model, Selection()).items():
            if is_head(name):
                continue
            weight = weights[name]
            axis = 1 - spec.axis if wrong else spec.axis
            if weight.shape[axis] % 4 == 0:
                weight.mul_(nm_mask(weight.abs(), "2:4", axis))
                plan[name] = NMSpec(NMPattern(2, 4), axis)
    home = folder / "model"
    home.mkdir(parents=True)
    state = {name: to_array(value) for name, value in model.state_dict().items()}
    save_safetensors(home / "model.safetensors", state, {KEY: plan_json(plan)})
    write_source(home, source)
    return len(plan)


def to_onnx(checkpoint: Path, out: Path) -> ExportReport:
    return export.run(ExportConfig(checkpoint=checkpoint, out=out, to="onnx"))


@pytest.mark.parametrize("sample", MARKED)
def test_a_sample_exports_within_tolerance_and_keeps_its_pattern(
    tmp_path: Path, sample: str
) -> None:
    layers = save_run(tmp_path / "run", sample)
    out = tmp_path / "m.onnx"
    report = to_onnx(tmp_path / "run", out)
    assert report.ok and report.parity is not None
    assert report.parity.ok and report.parity.tolerance == 1e-4
    assert len(report.layers) == layers > 0
    assert all(layer.pattern_ok for layer in report.layers)
    verdict = verify_nm.run(VerifyConfig(checkpoint=[out]))
    assert verdict.exit_code == 0
    assert len(verdict.checkpoints[0].layers) >= layers - 1  # shared ones are one


# What leaves the number of samples open; the examples of a sample fix it.
DYNAMIC = {
    "digits-resnet": ["pixels:float32:batch,1,8,8"],
    "stdlib-gpt": ["input_ids:int64:batch,seq"],
    "stdlib-bert": ["input_ids:int64:batch,seq"],
    "translate-tiny": [
        "input_ids:int64:batch,seq",
        "attention_mask:int64:batch,seq",
        "decoder_input_ids:int64:batch,target",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("sample", SAMPLES)
def test_the_graph_of_a_sample_has_its_metrics(tmp_path: Path, sample: str) -> None:
    save_run(tmp_path / "run", sample)
    options = [f"model.options.{key}={value}" for key, value in SAMPLES[sample].items()]
    config = load_config(sample_directory(sample) / "config.toml", options)
    wanted = evaluate_checkpoint(config, tmp_path / "run" / "model").metrics
    forms = {"fixed": [], "dynamic": DYNAMIC[sample]}
    if sample == "translate-tiny":
        del forms["fixed"]  # its examples are of other lengths than its data
    for name, inputs in forms.items():
        out, run = tmp_path / f"{name}.onnx", tmp_path / "run"
        given = ExportConfig(checkpoint=run, out=out, to="onnx", input=inputs)
        assert export.run(given).ok
        found = evaluate_checkpoint(config, out).metrics
        assert found == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("sample", MARKED)
def test_a_mask_along_the_wrong_axis_fails_in_the_graph(
    tmp_path: Path, sample: str
) -> None:
    """The checkpoint holds what its plan says; the graph multiplies the other way."""
    save_run(tmp_path / "run", sample, wrong=True)
    report = to_onnx(tmp_path / "run", tmp_path / "m.onnx")
    assert (report.exit_code, report.output) == (1, None)
    broken = [layer for layer in report.layers if layer.pattern_ok is False]
    assert "in the graph" in str(broken[0].advice)
    assert not (tmp_path / "m.onnx").exists()
