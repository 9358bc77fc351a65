"""Every sparse layer of the quantized sample models: codes, quantizers, mutations."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")
pytest.importorskip("transformers")

from commands.export.quantizer_walk import DTYPES, faults_of  # noqa: E402
from sample_models.test_export import save_run  # noqa: E402

from step_cli.commands.export import run as export  # noqa: E402
from step_cli.commands.verify import run as verify_nm  # noqa: E402
from step_cli.config.commands import ExportConfig, VerifyConfig  # noqa: E402
from step_cli.formats.open import open_checkpoint  # noqa: E402

FP8 = pytest.param("stdlib-bert", "fp8", marks=pytest.mark.slow)


def save_samples(folder: Path, sample: str) -> Path:
    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {"input_ids": rng.integers(1, 200, (10, 64))}
    if sample == "digits-resnet":
        arrays = {"pixels": rng.random((10, 1, 8, 8), np.float32)}
    if sample == "stdlib-gpt":
        arrays = {"input_ids": rng.integers(1, 200, (10, 128))}
    np.savez(folder / "samples.npz", **arrays)
    return folder / "samples.npz"


@pytest.mark.parametrize(
    ("sample", "codes"),
    [
        ("digits-resnet", "int8"),
        ("stdlib-bert", "int8"),
        ("stdlib-gpt", "int8"),
        ("digits-resnet", "fp8"),
        FP8,
        pytest.param("stdlib-gpt", "fp8", marks=pytest.mark.slow),
    ],
)
def test_every_sparse_layer_has_zero_codes_and_quantizers(
    sample: str, codes: str, tmp_path: Path
) -> None:
    layers = save_run(tmp_path / "run", sample)
    out = tmp_path / "m.onnx"
    report = export.run(
        ExportConfig(
            checkpoint=tmp_path / "run",
            out=out,
            to="onnx",
            quantize=codes,
            calibration=save_samples(tmp_path, sample),
        )
    )
    quantization = report.quantization
    assert report.ok and quantization is not None and quantization.faults == []
    assert quantization.layers == len(report.layers) == layers > 0
    dtype = DTYPES[codes]
    source = {t.name: t for t in open_checkpoint(tmp_path / "run").tensors}
    weights = {str(x.onnx_name): source[x.name].read() for x in report.layers}
    assert faults_of(out, weights, codes) == []
    for layer in report.layers:
        found, targets = layer.quantizers, layer.targets
        assert layer.pattern_ok and layer.zeros_kept
        assert found is not None and targets is not None
        assert {found.input, found.weight, found.output} == {dtype}
        assert (found.scales == 1) == (codes == "fp8")
        assert targets["tensorrt"].possible
    for part, count in ((quantization.calibration, 8), (quantization.held_out, 2)):
        assert part is not None and part.samples == count
        assert part.cosine is not None and part.cosine > 0.99
    verdict = verify_nm.run(VerifyConfig(checkpoint=[out], tensorrt=True))
    (found_in,) = verdict.checkpoints
    assert verdict.exit_code == 0 and len(found_in.layers) == layers
    assert {layer.dtype for layer in found_in.layers} == {dtype}
