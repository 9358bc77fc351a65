"""`verify-nm --format html`: the verdict both ways, small, and made of data alone."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_reader import Page
from render.test_verify_formats import (
    HOSTILE,
    checkpoint,
    hostile,
    layer,
    refused,
    report,
    skip,
    text,
)
from safetensors.numpy import save_file

from step_cli import render
from step_cli.render.page_charts import Bar, BarChart, ticks
from step_cli.render.page_frame import framed
from step_cli.render.verify_page import MOST_BARS, MOST_MESSAGES, MOST_ROWS
from step_cli.reports import TargetView, VerifyReport

Cli = Callable[..., Any]


def page(of: VerifyReport, *, verbose: bool = False) -> Page:
    return Page(render.text(of, "html", verbose=verbose))


def two_four(rows: int = 8) -> np.ndarray:
    return np.tile(np.array([1, 2, 0, 0], np.float16), (rows, 4))


def test_a_pass_and_the_same_file_with_one_weight_changed(
    step_cli: Cli, tmp_path: Path
) -> None:
    path, out = tmp_path / "m.safetensors", tmp_path / "nm.html"
    weight = two_four()
    for ok in (True, False):
        save_file(
            {"a.weight": weight, "b.weight": two_four(), "a.bias": weight[0]}, path
        )
        done = step_cli("verify-nm", path, "--format", "html", "--output", out)
        assert done.code == (0 if ok else 1)
        assert (
            "a.weight" in done.out and "<html" not in done.out
        )  # the table still shows
        shown = Page(out.read_text("utf-8"))
        assert shown.facts["verdict"] == ("passed" if ok else "FAILED")
        assert shown.facts["groups"] == f"64, of which {0 if ok else 1} bad"
        assert shown.facts["coverage"] == "1"
        row = next(row for row in shown.rows if row[0] == "a.weight")
        density, verdict = ("0.5000", "ok") if ok else ("0.5078", "FAILED")
        cells = ["8 × 16", "float16", "2:4", "1", "default", "32"]  # noqa: RUF001
        assert row[1:7] == cells and row[7:] == ["0" if ok else "1", density, verdict]
        assert ["name", "1"] in shown.rows  # why a.bias was not judged
        assert ("Bad groups" in shown.headings) is not ok
        said = [line for line in shown.text if "1 of 32 groups break it" in line]
        assert bool(said) is not ok
        weight[3, 6] = 0.5


def test_the_page_goes_to_stdout_alone(step_cli: Cli, tmp_path: Path) -> None:
    save_file({"a.weight": two_four()}, tmp_path / "m.safetensors")
    done = step_cli("verify-nm", tmp_path / "m.safetensors", "--format=html")
    assert done.code == 0 and done.out.startswith("<!DOCTYPE html>")
    assert Page(done.out).headings[0] == "Does it hold its N:M pattern?"
    both = step_cli("verify-nm", tmp_path / "m.safetensors", "--format=html", "--json")
    assert both.code == 2


def test_charts_have_axes_with_units_and_titles() -> None:
    failed = layer("bad", violations=3)
    shown = page(report(checkpoint([failed, layer("good", ok=True)])))
    for title in (
        "bad groups (% of the layer's groups)",
        "density (share of the layer's weights that are not 0)",
        "layer", "N/M of the pattern", "75 % (3)", "0.5000, 2:4", "0.2", "80",
    ):  # fmt: skip
        assert title in shown.drawn, title


def test_coverage_is_drawn_only_where_something_is_missing() -> None:
    whole = checkpoint([layer("a", ok=True)])
    assert "Coverage" not in page(report(whole)).headings
    assert whole.totals is not None
    totals = whole.totals.model_copy(update={"coverage": 0.4, "uncovered": 24})
    less = checkpoint([layer("a", ok=True)], [skip("b")])
    shown = page(report(less.model_copy(update={"totals": totals})))
    assert "Coverage" in shown.headings
    assert "size (elements as they are stored)" in shown.drawn
    assert shown.facts["coverage"] == "0.4, not judged: 1 size"
    assert any("b: cannot be checked" in line for line in shown.text)


def test_targets_are_columns_with_their_advice() -> None:
    view = TargetView(possible=True, likely=False, advice="small layers")
    one = layer("a", ok=True, targets={"tensorrt": view})
    shown = page(report(checkpoint([one])))
    assert shown.rows[0][-1] == "TensorRT" and shown.rows[1][-1] == "possible"
    assert "TensorRT: possible for 1 layer: small layers" in shown.text


def test_a_file_of_thousands_of_layers_has_a_small_page() -> None:
    layers = [layer(f"layers.{n:05}.weight", ok=n > 600) for n in range(5000)]
    many = report(checkpoint(layers, [skip(f"left.{n}") for n in range(3000)]))
    html = render.text(many, "html", verbose=False)
    assert len(html) < 150_000
    shown = Page(html)
    named = [row for row in shown.rows if row[0].startswith("layers.")]
    assert len(named) == MOST_ROWS
    assert sum(text.endswith(".weight") for text in shown.drawn) == 2 * MOST_BARS
    assert f"And {5000 - MOST_ROWS} more; -v lists all." in shown.text
    assert f"and {601 + 3000 - MOST_MESSAGES} more; -v shows all" in shown.text
    whole = page(many, verbose=True)
    assert sum(row[0].startswith("layers.") for row in whole.rows) == 5000
    assert sum(row[0].startswith("left.") for row in whole.rows) == 3000


@pytest.mark.parametrize("name", HOSTILE, ids=range(len(HOSTILE)))
def test_names_are_data(name: str) -> None:
    shown = page(hostile(name), verbose=True)  # no element of theirs, as Page refuses
    assert len([row for row in shown.rows if row[-1] == "FAILED"]) == 1


def test_what_could_not_be_read_is_told() -> None:
    shown = page(report(checkpoint([layer("a", ok=True)]), refused("n", "truncated")))
    assert "FAILED: 1 of 2 checkpoints" in shown.text
    assert "truncated" in shown.text and "bad" in shown.marks
    assert "passed: 2 checkpoints" in page(
        report(checkpoint([layer("a", ok=True)]), checkpoint([layer("b", ok=True)]))
    ).text  # fmt: skip


def test_it_needs_neither_jinja2_nor_torch(tmp_path: Path) -> None:
    save_file({"a.weight": two_four()}, tmp_path / "m.safetensors")
    script = (
        "import io, sys\n"
        "from step_cli.cli.app import run\n"
        "assert run(sys.argv[1:], io.StringIO()) == 0\n"
        "heavy = ('torch', 'onnx', 'jinja2', 'matplotlib', 'rich')\n"
        "print([name for name in heavy if name in sys.modules])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, "verify-nm", tmp_path / "m.safetensors",
         "--format", "html"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_every_page_follows_dark_readers_and_print() -> None:
    html = framed("<b>", "")
    assert "<title>&lt;b&gt;</title>" in html
    assert "@media screen and (prefers-color-scheme: dark)" in html  # not in print
    assert re.search(r"@media print \{.*color-scheme: light", html, re.S)
    assert "default-src 'none'" in html


@pytest.mark.parametrize(
    ("top", "whole", "expected"),
    [
        (1.0, False, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (3, True, [0, 1, 2, 3]),
        (2, True, [0, 1, 2]),
        (0.083, False, [0, 0.02, 0.04, 0.06, 0.08, 0.1]),
        (8001, True, [0, 2000, 4000, 6000, 8000, 10000]),
        (1e-9, False, [0, 2e-10, 4e-10, 6e-10, 8e-10, 1e-9]),
    ],
)
def test_ticks_are_round_numbers(
    top: float, whole: bool, expected: list[float]
) -> None:
    assert ticks(top, whole=whole) == pytest.approx(expected)


def test_bars_are_as_long_as_their_values() -> None:
    bars = [
        Bar("a", [1, 3], "1 and 3"),
        Bar("b", [0, 0], "none"),
        Bar("c", [0, 2], "2"),
    ]
    chart = BarChart("l", "row", "x (m)", [("one", "main"), ("two", "bad")], bars)
    found = re.findall(r'class="ink-(\w+)" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"',
                       chart.html())  # fmt: skip
    legend, drawn = found[:2], [(ink, float(x), float(w)) for ink, x, w in found[2:]]
    assert [ink for ink, _, _ in legend] == ["main", "bad"]
    assert [ink for ink, _, _ in drawn] == ["main", "bad", "bad"]
    one, two, three = (width for _, _, width in drawn)
    assert two == pytest.approx(3 * one, abs=0.2) and three == pytest.approx(
        2 * one, abs=0.2
    )
    assert drawn[1][1] == pytest.approx(drawn[0][1] + one, abs=0.2)
    assert BarChart("l", "row", "x", [("one", "main")], []).html() == ""


def test_text_of_other_formats_has_no_page() -> None:
    assert "<html" not in text(report(checkpoint([layer("a")])), "markdown")
