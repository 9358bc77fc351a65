"""What `autoswitch-profile --plot` draws, and what of it a reader can check."""

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from autoswitch.recordings import record, write
from autoswitch.variance_streams import WORKED, samples
from page_reader import Page

from step_cli.autoswitch.autoswitch import VarianceSample
from step_cli.autoswitch.variance_log import (
    RecordedLayer,
    VarianceHeader,
    header_line,
    sample_line,
)

Run = Callable[..., Any]
HOSTILE = '<script>alert(1)</script> $\\frac{$ \u202e "\x1b[31m'


def with_layers(path: Path, *names: str) -> Path:
    """A recording that tells what each of these layers did."""
    layers = tuple(RecordedLayer(name, 2) for name in names)
    text = header_line(VarianceHeader(0.5, 1e-8, 24, layers))
    for sample in samples(WORKED, 0.5):
        text += sample_line(sample, [(sample.v_l1, sample.dv_l1)] * len(names))
    path.write_text(text, encoding="utf-8")
    return path


def texts(svg: str) -> str:
    """All text of a drawing, from top to bottom."""
    found = ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")
    return "\n".join("".join(each.itertext()) for each in found)


@pytest.mark.parametrize("suffix", ["svg", "png", "html"])
def test_a_plot_is_the_same_each_time(
    step_cli: Run, tmp_path: Path, suffix: str
) -> None:
    log = with_layers(tmp_path / "variance.jsonl", "a", "b")
    plots = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for plot in plots:
        assert step_cli("autoswitch-profile", log, "--plot", plot).code == 0
    magic = {"svg": b"<?xml", "png": b"\x89PNG", "html": b"<!DOCTYPE html>"}[suffix]
    assert plots[0].read_bytes().startswith(magic)
    assert plots[0].read_bytes() == plots[1].read_bytes()
    assert step_cli("autoswitch-profile", log, "--plot", plots[0]).code == 0  # replaced


def test_the_drawing_says_what_it_shows(step_cli: Run, tmp_path: Path) -> None:
    log = with_layers(tmp_path / "variance.jsonl", "fc.weight")
    plot = tmp_path / "p.svg"
    words = ("--plot", plot, "--eps", "0.3", "--t-min", "3", "--t-max", "20")
    assert step_cli("autoswitch-profile", log, *words).code == 0
    said = texts(plot.read_text(encoding="utf-8"))
    for text in (
        "step (updates of v)",
        "[squared gradient]",
        "eps = 0.3",
        "its mean over 2 steps",
        "the same, geometric over weights",
        "threshold 0.5",
        "outside 3 to 20: clipped",
        "autoswitch: 6 (threshold), recommended",
        "its window of 2 steps",
        "relative-norm: 4 (t_min)",
        "fixed: 6 (fixed)",
        "fc.weight (last)",
        "When is Adam's variance ready? autoswitch says after step 6",
    ):
        assert text in said, text


def test_without_layers_there_is_no_panel_of_them(
    step_cli: Run, tmp_path: Path
) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    plot = tmp_path / "p.svg"
    assert step_cli("autoswitch-profile", log, "--plot", plot).code == 0
    assert "by layer" not in texts(plot.read_text(encoding="utf-8"))


def test_the_page_needs_nothing_else_and_says_it_all(
    step_cli: Run, tmp_path: Path
) -> None:
    log = with_layers(tmp_path / "variance.jsonl", "fc.weight", HOSTILE)
    plot = tmp_path / "p.html"
    words = ("--plot", plot, "--eps", "0.3", "--t-min", "3", "--t-max", "20")
    outcome = step_cli("autoswitch-profile", log, *words, "--json")
    assert outcome.code == 0
    source = plot.read_text(encoding="utf-8")
    page = Page(source)
    assert "svg" in page.tags and page.links == []
    told = "".join(page.by_tag.values())
    assert "<script>alert(1)</script>" in told  # as text
    for control in "\u202e\x1b":
        assert control not in source
    for row in outcome.json["criteria"]:
        assert row["name"] in told
    for line in outcome.json["advice"]:
        assert line in told
    assert outcome.json["switch_toml"] in told
    assert outcome.json["raw_toml"] in told


def test_several_seeds_are_drawn_and_told(step_cli: Run, tmp_path: Path) -> None:
    for seed, scale in enumerate((1.0, 1.1)):
        folder = tmp_path / "runs" / f"seed-{seed}"
        folder.mkdir(parents=True)
        gradients = [(scale * a, scale * b) for a, b in WORKED]
        record(folder / "variance.jsonl", gradients, 0.5)
    for suffix, said in (("svg", "seeds 6 to 7"), ("html", "6.5 ± 0.71")):
        plot = tmp_path / f"p.{suffix}"
        words = ("--eps", "0.3", "--t-min", "3", "--plot", plot)
        assert step_cli("autoswitch-profile", tmp_path / "runs", *words).code == 0
        assert said in plot.read_text(encoding="utf-8")


def test_seeds_are_in_the_order_of_their_numbers(step_cli: Run, tmp_path: Path) -> None:
    for seed in (10, 2):
        folder = tmp_path / f"seed-{seed}"
        folder.mkdir()
        record(folder / "variance.jsonl", WORKED[: 10 + seed], 0.5, steps=10)
    seeds = step_cli("autoswitch-profile", tmp_path, "--json").json["seeds"]
    assert [seed["steps"] for seed in seeds] == [12, 20]


def test_the_plot_never_replaces_the_recording(step_cli: Run, tmp_path: Path) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    (tmp_path / "link.svg").symlink_to(log)
    before = log.read_bytes()
    outcome = step_cli("autoswitch-profile", log, "--plot", tmp_path / "link.svg")
    assert outcome.code == 2
    assert log.read_bytes() == before


@pytest.mark.parametrize("suffix", ["svg", "png", "html"])
def test_what_cannot_be_shown_on_a_log_axis_is_left_out(
    step_cli: Run, tmp_path: Path, suffix: str
) -> None:
    # A run that stands still, and one shorter than its window.
    still = record(tmp_path / "a.jsonl", [(1.0,)] * 2 + [(0.0,)] * 2000, 0.5)
    short = record(tmp_path / "b.jsonl", [(0.0, 0.0)] * 5, 0.999)
    # No fp32 run comes near; matplotlib's axes overflow.
    ends = [(9e289, 5e-324)[t % 2] for t in range(1, 60)]
    wide = [VarianceSample(t, 4, v, v, v, 0.0) for t, v in enumerate(ends, 1)]
    for log in (still, short, write(tmp_path / "c.jsonl", wide)):
        plot = log.with_suffix(f".{suffix}")
        assert step_cli("autoswitch-profile", log, "--plot", plot).code == 0
        assert plot.stat().st_size > 1000
