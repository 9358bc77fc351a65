"""What a comparison shows: its page, its drawings, its table, and what is to come."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from commands.compare.comparisons import RECIPES, words
from page_reader import Page
from small_run import small_config

from step_cli.commands.compare import page as page_module
from step_cli.commands.compare.outcome import Outcome
from step_cli.commands.compare.pace import Pace
from step_cli.commands.compare.runs import Run, runs_of
from step_cli.config.types import RECIPE_NAMES
from step_cli.plots.compare_plot import (
    LOOKS,
    MeanPoint,
    SeedCurve,
    draw_curves,
    draw_means,
)
from step_cli.render.compare_page import ComparePage, cells, html, markdown
from step_cli.reports import ComparedPair, ComparedRow, CompareReport, FailedRun
from step_cli.training.trainer import Trainer

Cli = Callable[..., Any]


def row(recipe: str, pattern: str | None, *values: float, **more: Any) -> ComparedRow:
    seeds = list(range(len(values)))
    name = f"{recipe}-{pattern}".replace(":", "of")
    given = {
        "recipe": recipe, "pattern": pattern, "seeds": seeds, "values": list(values),
        "mean": sum(values) / len(values) if values else None, "sd": 0.01,
        "to_dense": -0.1, "switch_steps": [], "failed": [],
        "runs": [f"{name}-seed{seed}" for seed in seeds],
    }  # fmt: skip
    return ComparedRow(**(given | more))


REPORT = CompareReport(
    ok=False,
    metric="eval_accuracy",
    higher_is_better=True,
    rows=[
        row("dense", None, 0.9, 0.92),
        row("asp", "2:4", 0.8, 0.84),
        row("step", "2:4", 0.88, 0.9, switch_steps=[30, 40]),
        row("asp", "1:4", failed=[FailedRun(run="asp-1of4-seed0", seed=0,
                                            reason="<b>the loss is nan</b>")]),
    ],
    pairs=[
        ComparedPair(better="step", than="asp", pattern="2:4", difference=0.07,
                     interval=(0.02, 0.12), clear=True),
        ComparedPair(better="dense", than="step", pattern="2:4", difference=0.02,
                     interval=None, clear=False),
    ],
    run_dir=".",
)  # fmt: skip
POINTS = [MeanPoint(REPORT.rows[0], (0.8, 1.2)), MeanPoint(REPORT.rows[1], None),
          MeanPoint(REPORT.rows[2], (0.85, 0.93))]  # fmt: skip
CURVES = [
    SeedCurve("dense", None, [20, 40, 60], [0.5, 0.8, 0.9], None),
    SeedCurve("asp", "2:4", [20, 40, 60], [0.4, 0.7, 0.8], 0),
    SeedCurve("step", "2:4", [20, 40, 60], [0.5, 0.7, 0.88], 30),
]
PAGE = ComparePage(REPORT, [("model", "net.py:build")], [("asp", "a = 1")], "", "")


def test_the_page_needs_nothing_else_and_shows_everything() -> None:
    text = html(PAGE, {})
    page = Page(text)
    assert "http" not in text.replace("http-equiv", "")
    assert all(link.endswith("/report.html") for link in page.links)
    assert "step-2of4-seed1/report.html" in page.links
    assert "&lt;b&gt;the loss is nan" in text
    assert "1 of 7 runs do not count" in text
    for words_ in ("0.8900", "30, 40", "+0.0200 to +0.1200", "options of asp"):
        assert words_ in text


def test_the_markdown_has_the_same_tables() -> None:
    lines = markdown(PAGE).splitlines()
    cells = "| step | 2:4 | 0.8900 | 0.0100 | -0.1000 | 2 | 30, 40 |"
    assert cells in lines
    assert "| 2:4 | step | asp | +0.0700 | +0.0200 to +0.1200 | yes |" in lines
    assert "| 2:4 | dense | step | +0.0200 | \u2013 | \u2013 |" in lines
    assert any(line.startswith("- asp-1of4-seed0:") for line in lines)
    assert len({line.count("|") for line in lines if line.startswith("| recipe")}) == 1


@pytest.mark.draws
def test_drawings_are_the_same_each_time_and_have_units() -> None:
    means, curves = draw_means(REPORT, POINTS), draw_curves(REPORT, CURVES, 60)
    assert means == draw_means(REPORT, POINTS)
    assert curves == draw_curves(REPORT, CURVES, 60)
    for svg in (means, curves):
        assert "held-out accuracy (share correct)" in svg
        assert ">2:4<" in svg and ">1:4<" in svg
    assert ">step<" in curves and ">switch<" in curves  # a legend, and the axis
    for recipe in ("step", "asp"):
        assert LOOKS[recipe][0] in means and LOOKS[recipe][0] in curves


def test_every_recipe_has_a_look_of_its_own() -> None:
    assert set(LOOKS) == set(RECIPE_NAMES)
    colours = [colour for colour, _, _ in LOOKS.values()]
    marks = [mark for _, mark, _ in LOOKS.values()]
    assert len(set(colours)) == len(set(marks)) == len(LOOKS)


def test_of_many_switch_steps_the_first_and_the_last_are_shown() -> None:
    one = row("step", "2:4", *[0.5] * 6, switch_steps=[31, 30, 32, 31, 40, 33])
    report = REPORT.model_copy(update={"rows": [one]})
    assert cells(report)[0][-1] == "30 to 40"


def test_the_summary_lists_what_was_taken_in_the_order_of_the_recipes(
    tmp_path: Path,
) -> None:
    settings = ("compare.asp={v_correction='none'}", "switch.criterion=staleness",
                "data.source=digits", "model.weights=a/start/")  # fmt: skip
    config = small_config(tmp_path, *settings)
    runs = runs_of(config, ("dense", "asp", "step"), None, 2)
    assert list(page_module._options(runs)) == [
        ("asp", "v_correction = none"),
        ("step", "switch.criterion = staleness, switch.eps = 1e-30, "
                 "switch.t_max = 11, switch.t_min = 3"),
    ]  # fmt: skip
    assert ("start weights", "start") in page_module._facts(runs)


def test_a_long_curve_is_thinned_out(tmp_path: Path) -> None:
    lines = [json.dumps({"step": n, "eval_loss": 1.0}) for n in range(1, 5001)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    (run,) = runs_of(small_config(tmp_path), ("ste",), None, 1)
    curve = page_module._curve(tmp_path, Outcome(run), "eval_loss")
    assert len(curve.steps) <= 2000 and curve.steps[-1] == 5000


# ------------------------------------------------------------------------- --dry-run


def test_a_dry_run_lists_the_runs_and_writes_nothing(
    step_cli: Cli, tmp_path: Path
) -> None:
    argv = [*words(tmp_path), *RECIPES, "--run-dir", tmp_path / "runs", "--dry-run"]
    before = sorted(tmp_path.rglob("*"))
    document = step_cli(*argv, "--json").json
    assert document["schema"] == "step-cli/compare-dry-run/1" and document["ok"]
    names = [run["run"] for run in document["runs"]]
    assert names == ["dense-seed0", "asp-2of4-seed0", "sr-ste-2of4-seed0",
                     "step-2of4-seed0"]  # fmt: skip
    assert {run["state"] for run in document["runs"]} == {"new"}
    assert {run["steps"] for run in document["runs"]} == {24}
    assert all(0 < run["seconds"] < 600 for run in document["runs"])
    total = sum(run["seconds"] for run in document["runs"])
    assert document["seconds"] == pytest.approx(total)
    assert [p for p in sorted(tmp_path.rglob("*")) if "__pycache__" not in p.parts] == (
        before
    )


@pytest.mark.parametrize("steps", ["1", "2"])
def test_a_dry_run_of_few_steps_refuses_nothing_that_can_be_trained(
    step_cli: Cli, tmp_path: Path, steps: str
) -> None:
    few = (f"train.steps={steps}", "train.warmup_steps=0", "switch.t_min=0",
           "switch.t_max=0")  # fmt: skip
    argv = [*words(tmp_path, *few), *RECIPES, "--run-dir", tmp_path / "runs"]
    assert step_cli(*argv, "--dry-run").code == 0
    assert step_cli(*argv).code == 0


def test_a_dry_run_counts_what_is_finished(
    step_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*words(tmp_path), "--run-dir", tmp_path / "runs", "--recipes"]
    assert step_cli(*argv, "dense").code == 0
    assert step_cli(*argv, "dense,asp", "--dry-run").code == 5
    before = sorted(tmp_path.rglob("*"))
    outcome = step_cli(*argv, "dense,asp", "--dry-run", "--resume")
    assert outcome.code == 0
    assert re.search(r"dense-seed0 +finished +0 +0:00", outcome.out)
    assert re.search(r"asp-2of4-seed0 +new +24 ", outcome.out)
    assert "1 of 2 runs to train, about" in outcome.out
    assert sorted(tmp_path.rglob("*")) == before
    none = step_cli(*argv, "dense", "--dry-run", "--resume", "--run-dir", "no-such")
    assert none.code == 4
    high = [*words(tmp_path, "train.lr=1e30"), "--recipes", "ste", "--dry-run"]
    bad = step_cli(*high, "--run-dir", tmp_path / "none")
    assert bad.code == 7 and re.search(r"ste at 2:4: step \d+: ", bad.error)
    monkeypatch.setattr(Trainer, "run", None)  # nothing is left to be measured
    done = step_cli(*argv, "dense", "--dry-run", "--resume", "--json")
    assert done.json["seconds"] == 0


def test_the_time_left_is_that_of_like_runs() -> None:
    class Config:
        class train:
            steps = 100

    def run(recipe: str) -> Run:
        return Run(recipe, None, 0, Config)  # type: ignore[arg-type]

    pace = Pace()
    assert pace.seconds_for([run("asp")], None) is None
    assert pace.seconds_for([], None) == 0
    assert pace.seconds_for([run("asp")], 10.0) == pytest.approx(10)
    pace.add(run("dense"), 20.0, 100)
    pace.add(run("step"), 40.0, 100)
    rest = [run("dense"), run("step"), run("asp")]
    assert pace.seconds_for(rest, 10.0) == pytest.approx(20 + 40 + 30)


def test_the_table_on_a_terminal_is_the_report() -> None:
    import io

    from step_cli import render

    out = io.StringIO()
    render.show(REPORT, out)
    text = out.getvalue()
    assert "held-out accuracy, higher is better" in text
    assert "asp-1of4-seed0: <b>the loss is nan</b>" in text
    assert re.search(r"step +2:4 +0\.8900 +0\.0100 +-0\.1000 +2 +30, 40", text)
    assert "FAILED  6 of 7 runs count" in text
    assert json.loads(REPORT.document())["schema"] == "step-cli/compare/1"
