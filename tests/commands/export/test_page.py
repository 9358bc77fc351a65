"""`export --report`: the evidence as a page, also where a check failed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_reader import Page
from render.test_verify_formats import HOSTILE
from safetensors.numpy import save_file

from step_cli.render.export_page import html
from step_cli.reports import (
    BackendReport,
    BenchReport,
    ExportBytes,
    ExportLayer,
    ExportReport,
    LayerQuantizers,
    OutputDifference,
    Parity,
    QuantizationReport,
    SkippedTensor,
    SparsityCounts,
)

Cli = Callable[..., Any]


def two_four() -> np.ndarray:
    return np.tile(np.array([1, 2, 0, 0], np.float16), (8, 4))


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_file({"fc.weight": two_four()}, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def words(checkpoint: Path, **more: object) -> list[object]:
    given = {"to": "compressed", "report": checkpoint.with_name("page.html")} | more
    options = [word for name, value in given.items() for word in (f"--{name}", value)]
    return ["export", checkpoint, checkpoint.with_name("c.safetensors"), *options]


# ------------------------------------------------------------------------ the option


def test_the_page_of_a_pass_and_of_a_failure(step_cli: Cli, checkpoint: Path) -> None:
    page = checkpoint.with_name("page.html")
    assert step_cli(*words(checkpoint)).code == 0
    shown = Page(page.read_text("utf-8"))
    assert shown.facts["to"] == "compressed" and shown.facts["layers"] == "2:4 (1)"
    assert ["fc.weight", "2:4", "1", "yes"] in shown.rows
    assert {"size (KiB)", "size (bytes)"} & set(shown.drawn)
    assert "layers (count)" in shown.drawn and "1 yes, 0 no, 0 ?" in shown.drawn
    assert "good" in shown.marks

    weight = two_four()
    weight[2, 2] = 1
    save_file({"fc.weight": weight}, checkpoint)
    done = step_cli(*words(checkpoint), "--force", "--json")
    assert done.code == 1 and done.json["ok"] is False
    shown = Page(page.read_text("utf-8"))  # replaced
    assert shown.facts["file"] == "nothing was written"
    assert shown.rows[1][:4] == ["fc.weight", "2:4", "1", "no"]
    assert "0 yes, 1 no, 0 ?" in shown.drawn and "bad" in shown.marks


def test_it_is_replaced_without_force_and_the_output_is_not(
    step_cli: Cli, checkpoint: Path
) -> None:
    page, out = checkpoint.with_name("page.html"), checkpoint.with_name("c.safetensors")
    page.write_text("old")
    assert step_cli(*words(checkpoint)).code == 0
    assert page.read_text().startswith("<!DOCTYPE html>")
    page.write_text("old")
    assert step_cli(*words(checkpoint)).code == 5  # c.safetensors is there
    assert page.read_text() == "old" and out.exists()


@pytest.mark.parametrize(
    ("name", "code", "said"),
    [
        ("page.txt", 2, "expected a name that ends in .html"),
        ("no/page.html", 5, "no"),
        ("folder.html", 5, "a directory"),
        ("m.html", 2, "output is the input"),
    ],
)
def test_a_page_that_cannot_be_is_told_before_any_work(
    step_cli: Cli, checkpoint: Path, name: str, code: int, said: str
) -> None:
    checkpoint.with_name("folder.html").mkdir()
    checkpoint.with_name("m.html").hardlink_to(checkpoint)
    before = checkpoint.read_bytes()
    done = step_cli(*words(checkpoint, report=checkpoint.parent / name))
    assert done.code == code and said in done.error
    assert not checkpoint.with_name("c.safetensors").exists()
    assert checkpoint.read_bytes() == before


def test_the_output_is_no_page(step_cli: Cli, checkpoint: Path) -> None:
    out = checkpoint.with_name("m.html")
    done = step_cli("export", checkpoint, out, "--to", "dense", "--report", out)
    assert done.code == 2


def test_a_page_that_fails_at_the_end_leaves_the_output(
    step_cli: Cli, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from step_cli.commands.export import run
    from step_cli.errors import OutputError

    def full(*arguments: object, **more: object) -> None:
        raise OutputError("no space left on device", file="page.html")

    monkeypatch.setattr(run, "staged", full)
    done = step_cli(*words(checkpoint))
    assert done.code == 5 and "c.safetensors is complete" in done.error
    assert checkpoint.with_name("c.safetensors").exists()


# -------------------------------------------------------------------------- the page


def layer(name: str, **more: Any) -> ExportLayer:
    return ExportLayer(**({"name": name, "pattern": "2:4", "axis": 1} | more))


def report(*layers: ExportLayer, **more: Any) -> ExportReport:
    given = {"ok": True, "to": "tensorrt", "output": "m.plan", "layers": list(layers)}
    return ExportReport(**(given | more))


def test_what_was_not_observed_is_a_question_mark() -> None:
    chosen = layer("a", pattern_ok=True, eligible=True, chosen=True, tactic="sparse_k")
    dense = layer("b", pattern_ok=True, eligible=True, chosen=False, advice="larger")
    unseen = layer("c", pattern_ok=True)
    shown = Page(html(report(chosen, dense, unseen), "runs/a"))
    head = [
        "layer",
        "pattern",
        "axis",
        "holds",
        "eligible",
        "chosen",
        "tactic",
        "advice",
    ]
    assert head in shown.rows
    dash = "\u2013"
    assert ["a", "2:4", "1", "yes", "yes", "yes", "sparse_k", dash] in shown.rows
    assert ["b", "2:4", "1", "yes", "yes", "no", dash, "larger"] in shown.rows
    assert ["c", "2:4", "1", "yes", "?", "?", dash, dash] in shown.rows
    assert "2 yes, 0 no, 1 ?" in shown.drawn and "1 yes, 1 no, 1 ?" in shown.drawn
    assert shown.facts["from"] == "runs/a"
    without = Page(html(report(layer("a", pattern_ok=True)), "a"))
    assert "eligible" not in str(without.rows) and "chosen" not in without.drawn


def test_sizes_times_codes_and_commands_are_shown() -> None:
    difference = OutputDifference(
        samples=8, max_abs=0.25, max_rel=0.5, mean_abs=0.125, cosine=0.75
    )
    codes = QuantizationReport(
        codes="int8", layers=1, calibration=difference, held_out=None,
        runtime="ONNX Runtime, CPU", fp32_bytes=5 << 20, faults=["a: quantized twice"],
    )  # fmt: skip
    around = LayerQuantizers(input="int8", weight="int8", output=None, scales=8)
    full = report(
        layer("a", quantizers=around, zeros_kept=True),
        bytes=ExportBytes(dense=6 << 20, output=3 << 20),
        parity=Parity(max_abs=0.5, max_rel=1, ok=False, tolerance=0.1, output="y"),
        quantization=codes,
        backend=BackendReport(
            name="tensorrt", version="10.9", compute_capabilities=["8.0"],
            sparse_weights="permitted",
        ),
        bench=BenchReport(runtime="TensorRT", sparse_ms=1.5, dense_ms=2),
        sha256={"plan": "0" * 64}, sparsity=[SparsityCounts(eligible=2, chosen=1)],
        trtexec="trtexec --onnx=<m>.onnx", skipped=[
            SkippedTensor(name="n", shape=[3], dtype="float32", reason="norm")
        ],
    )  # fmt: skip
    shown = Page(html(full, "a"))
    for words_ in ("size (MiB)", "5,242,880 bytes", "1.500 ms",
                   "median time of one run (ms, TensorRT)"):  # fmt: skip
        assert words_ in shown.drawn, words_
    assert ["calibration", "8", "0.25", "0.5", "0.125", "0.750000"] in shown.rows
    assert ["a", "2:4", "1", "input, weight", "yes", "?", "?"] in shown.rows
    assert "0 yes, 0 no, 1 ?" in shown.drawn  # an engine without evidence
    assert ["norm", "1"] in shown.rows
    assert (
        "trtexec --onnx=<m>.onnx" in shown.text and "a: quantized twice" in shown.text
    )
    assert any("NOT within 0.1" in line for line in shown.text)
    assert shown.facts["SHA-256 of plan"] == "0" * 64


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_are_data(name: str) -> None:
    hostile = layer(name, tactic=name, advice=name, pattern_ok=False)
    path = name.replace("\ud800", "\udcff")
    written = html(report(hostile, notes=[name], output=path, trtexec=name), path)
    written.encode("utf-8")  # no lone surrogate
    assert Page(written).rows[1][1:4] == ["2:4", "1", "no"] and "##[" not in written
    assert len(written) < 40_000
