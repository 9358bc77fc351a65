"""`export` without torch: compressed files and back, options, refusals."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import step_cli
from step_cli.commands.export import compressed as export_compressed
from step_cli.commands.export import run as export
from step_cli.config.commands import ExportConfig
from step_cli.errors import (
    InputError,
    NonFiniteError,
    NothingSelectedError,
    OutputError,
    StepError,
    UsageError,
)
from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.open import open_checkpoint
from step_cli.formats.plan import KEY, plan_json
from step_cli.formats.safetensors.header import read_header
from step_cli.formats.safetensors.writer import packed_header, save_safetensors
from step_cli.nm.pattern import NMPattern, NMSpec, Plan
from step_cli.reports import ExportReport

Array = np.ndarray[Any, Any]
PLAN: Plan = {"fc.weight": NMSpec(NMPattern(2, 4), 1)}


def weights() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    fc = rng.normal(size=(8, 16)).astype(np.float32)
    fc.reshape(8, 4, 4)[:, :, 1:3] = 0
    return {"fc.weight": fc, "fc.bias": np.ones(8, np.float32)}


def save(path: Path, tensors: dict[str, Array], plan: Plan | None = PLAN) -> Path:
    metadata = {} if plan is None else {KEY: plan_json(plan)}
    save_safetensors(path, tensors, metadata)
    return path


def run(checkpoint: Path, out: Path, to: str, **options: Any) -> ExportReport:
    return export.run(ExportConfig(checkpoint=checkpoint, out=out, to=to, **options))


def others(folder: Path, *known: str) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name not in known)


def test_what_the_user_noted_survives(tmp_path: Path) -> None:
    noted = {
        "format": "tf",
        "author": "A. \N{LATIN SMALL LETTER E WITH ACUTE}",
        "": "x",
    }
    source, small, back = (tmp_path / f"{name}.safetensors" for name in "scb")
    save_safetensors(source, weights(), {**noted, "step_cli.other": "of our own"})

    def metadata(path: Path) -> dict[str, str]:
        found = read_header(map_file(path)).metadata
        return {k: v for k, v in found.items() if not k.startswith("step_cli.")}

    step_cli.export(source, small, to="compressed")
    assert metadata(small) == noted
    assert open_checkpoint(small).integrity == "sha256"
    step_cli.export(small, back, "dense")
    assert metadata(back) == noted
    step_cli.export(back, small, "compressed", force=True)
    assert metadata(small) == noted
    step_cli.prune(source, back, force=True)
    assert metadata(back) == noted


def test_what_is_noted_in_shards_survives(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    weight_map = {}
    for number, (name, array) in enumerate(weights().items()):
        noted = {"format": "pt", f"n{number}": "x", "both": str(number)}
        save_safetensors(folder / f"{number}.safetensors", {name: array}, noted)
        weight_map[name] = f"{number}.safetensors"
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    out = tmp_path / "c.safetensors"
    step_cli.export(folder, out, "compressed")
    found = open_checkpoint(out).metadata
    assert found == {"format": "pt", "n0": "x", "n1": "x", "both": "0"}


def test_metadata_may_be_null(tmp_path: Path) -> None:
    source, small, back = (tmp_path / f"{name}.safetensors" for name in "scb")
    fc = weights()["fc.weight"]
    entry = {"dtype": "F32", "shape": [8, 16], "data_offsets": [0, fc.nbytes]}
    source.write_bytes(packed_header({"__metadata__": None, "fc.weight": entry}))
    with open(source, "ab") as file:
        file.write(fc.tobytes())
    assert step_cli.verify(source).ok
    step_cli.export(source, small, "compressed")
    step_cli.export(small, back, "dense")
    step_cli.prune(source, back, force=True)
    assert open_checkpoint(back).tensors[0].read().tobytes() == fc.tobytes()
    for bad in ([], "x", 0, False, {"a": None}):
        source.write_bytes(packed_header({"__metadata__": bad}))
        with pytest.raises(InputError, match="__metadata__ is not a map"):
            open_checkpoint(source)


def test_from_python_it_returns_the_report(tmp_path: Path) -> None:
    source, out = (
        save(tmp_path / "m.safetensors", weights()),
        tmp_path / "c.safetensors",
    )
    report = step_cli.export(str(source), str(out), to="compressed", nm="2:4")
    assert report.ok and report.to == "compressed" and report.output == str(out)
    options = {"nm": "2:4", "force": True}
    assert report.document() == run(source, out, "compressed", **options).document()
    with pytest.raises(OutputError, match="--force"):
        step_cli.export(source, out, to="compressed")
    with pytest.raises(ValueError, match="unknown_option"):
        step_cli.export(source, out, to="compressed", unknown_option=1)


def test_compressed_and_back_is_bit_exact(tmp_path: Path) -> None:
    dense = save(tmp_path / "m.safetensors", weights())
    small, back = tmp_path / "c.safetensors", tmp_path / "d.safetensors"
    report = run(dense, small, "compressed")
    assert report.ok
    assert (report.bytes.values, report.bytes.metadata) == (8 * 8 * 4, 8 * 8 // 4)
    assert report.bytes.output == small.stat().st_size
    assert [(layer.name, layer.pattern_ok) for layer in report.layers] == [
        ("fc.weight", True)
    ]
    assert [(skip.name, skip.reason) for skip in report.skipped] == [
        ("fc.bias", "name")
    ]
    assert run(small, back, "dense").negative_zeros == 0
    opened = open_checkpoint(back)
    assert opened.plan == PLAN
    assert {t.name: t.read().tobytes() for t in opened.tensors} == {
        name: array.tobytes() for name, array in weights().items()
    }


def test_negative_zeros_are_counted_both_ways(tmp_path: Path) -> None:
    tensors = weights()
    tensors["fc.weight"][tensors["fc.weight"] == 0] = -0.0
    dense = save(tmp_path / "m.safetensors", tensors)
    small = tmp_path / "c.safetensors"
    assert run(dense, small, "compressed").negative_zeros == 64
    assert run(small, tmp_path / "d.safetensors", "dense").negative_zeros == 64


def test_one_weight_too_many_writes_nothing(tmp_path: Path) -> None:
    tensors = weights()
    tensors["fc.weight"][3, 5] = 1.0
    report = run(
        save(tmp_path / "m.safetensors", tensors),
        tmp_path / "c.safetensors",
        "compressed",
    )
    assert (report.ok, report.output, report.exit_code) == (False, None, 1)
    assert report.layers[0].pattern_ok is False
    assert "1 of 32 groups break it; the first, at [3, 4]" in str(
        report.layers[0].advice
    )
    assert others(tmp_path, "m.safetensors") == []


def test_the_wrong_axis_breaks_the_pattern(tmp_path: Path) -> None:
    dense = save(tmp_path / "m.safetensors", weights())
    out = tmp_path / "c.safetensors"
    assert not run(dense, out, "compressed", axis=["fc.weight=0"]).ok
    assert run(dense, out, "compressed", axis=["fc.weight=1"]).ok


def test_without_a_plan_two_of_four_on_the_default_weights(tmp_path: Path) -> None:
    dense = save(tmp_path / "m.safetensors", weights(), plan=None)
    assert run(dense, tmp_path / "c.safetensors", "compressed").ok
    assert not run(dense, tmp_path / "d.safetensors", "compressed", nm="1:4").ok


@pytest.mark.parametrize(
    ("to", "name", "options", "kind", "message"),
    [
        (None, "c.safetensors", {}, UsageError, "--to: name what to write"),
        ("compressed", "c.bin", {}, UsageError, "ends in .safetensors"),
        ("onnx", "c.safetensors", {}, UsageError, "ends in .onnx"),
        (
            "compressed",
            "c.safetensors",
            {"precision": "fp16"},
            UsageError,
            "--precision has no meaning with --to compressed",
        ),
        (
            "onnx",
            "c.onnx",
            {"compute_capability": ["8.0"]},
            UsageError,
            "--compute-capability has no meaning with --to onnx",
        ),
        ("onnx", "c.onnx", {"input": ["x"]}, UsageError, "NAME:DTYPE:SHAPE"),
        ("compressed", "m.safetensors", {}, UsageError, "output is the input"),
        (
            "compressed",
            "c.safetensors",
            {"exclude": ["*"]},
            NothingSelectedError,
            "no tensor to export, skipped: 1 name, 1 excluded",
        ),
        (
            "dense",
            "c.safetensors",
            {},
            InputError,
            "not written by export --to compressed",
        ),
    ],
)
def test_refusals_name_the_fault_and_write_nothing(
    tmp_path: Path,
    to: str | None,
    name: str,
    options: dict[str, Any],
    kind: type[StepError],
    message: str,
) -> None:
    dense = save(tmp_path / "m.safetensors", weights())
    before = dense.read_bytes()
    with pytest.raises(kind, match=message):
        run(dense, tmp_path / name, to, **options)  # type: ignore[arg-type]
    assert others(tmp_path, "m.safetensors") == []
    assert dense.read_bytes() == before


def test_non_finite_weights_are_refused(tmp_path: Path) -> None:
    tensors = weights()
    tensors["fc.weight"][0, 0] = np.inf
    with pytest.raises(
        NonFiniteError, match=r"1 NaN or infinity, the first at \[0, 0\]"
    ):
        run(
            save(tmp_path / "m.safetensors", tensors),
            tmp_path / "c.safetensors",
            "compressed",
        )


def test_an_existing_output_needs_force(tmp_path: Path) -> None:
    dense = save(tmp_path / "m.safetensors", weights())
    out = tmp_path / "c.safetensors"
    out.write_bytes(b"old")
    with pytest.raises(OutputError):
        run(dense, out, "compressed")
    assert out.read_bytes() == b"old"
    assert run(dense, out, "compressed", force=True).ok
    assert open_checkpoint(out).format == "compressed"


def test_what_does_not_read_back_is_not_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real: Callable[..., Any] = export_compressed.save_compressed

    def damaged(path: Path, *given: Any) -> Any:
        written = real(path, *given)
        content = bytearray(path.read_bytes())
        content[-1] ^= 0xFF
        path.write_bytes(content)
        return written

    monkeypatch.setattr(export_compressed, "save_compressed", damaged)
    dense = save(tmp_path / "m.safetensors", weights())
    with pytest.raises(OutputError, match="does not read back"):
        run(dense, tmp_path / "c.safetensors", "compressed")
    assert others(tmp_path, "m.safetensors") == []


def test_the_command_prints_one_document_and_never_imports_torch(
    tmp_path: Path,
) -> None:
    dense = save(tmp_path / "m.safetensors", weights())
    (tmp_path / "torch.py").write_text("raise SystemExit('torch was imported')\n")
    command = [
        sys.executable,
        "-c",
        "from step_cli.cli.app import main; main()",
        "export",
    ]
    command += [str(dense), str(tmp_path / "c.safetensors"), "--to", "compressed"]
    done = subprocess.run(
        [*command, "--json"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    document = json.loads(done.stdout)
    assert document["schema"] == "step-cli/export/1"
    assert set(document) >= {"ok", "to", "output", "bytes", "ratio", "parity"}
    assert set(document["bytes"]) == {"dense", "output", "values", "metadata"}
    assert document["backend"] is None
    assert set(document["layers"][0]) >= {
        *("name", "onnx_name", "pattern_ok", "eligible", "chosen", "tactic", "advice")
    }
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 5
    assert again.stderr.startswith("error: ")
    assert again.stderr.count("\n") == 1


def test_types_that_only_torch_has_are_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    fc = torch.from_numpy(weights()["fc.weight"])
    for name, other in (
        ("complex", torch.ones(4, 4, dtype=torch.complex128)),
        ("sparse", torch.ones(4, 4).to_sparse()),
    ):
        path = tmp_path / f"{name}.pt"
        torch.save({"fc.weight": fc, "other": other}, path)
        with pytest.raises(InputError) as caught:
            run(path, tmp_path / "out.safetensors", "compressed")
        assert caught.value.tensor == "other"
    assert others(tmp_path, "complex.pt", "sparse.pt") == []
