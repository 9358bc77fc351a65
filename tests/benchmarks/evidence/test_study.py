"""The driver of the study: what it makes, what it leaves, and what it says."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.evidence import study as driver
from benchmarks.evidence.grid import (
    Run,
    cause_runs,
    quick_runs,
    recipe,
    runs_that_count,
)
from benchmarks.evidence.results import ROOT, Study
from benchmarks.evidence.tasks import TASKS

RUNS = [Run("text", "dense", "dense", seed, recipe("dense")) for seed in range(4)]


@pytest.fixture
def bench(tmp_path: Path) -> driver.Bench:
    return driver.Bench(Study(tmp_path / "results"), tmp_path, tmp_path)


def made(bench: driver.Bench, run: Run) -> None:
    bench.study.write(run, {"config": TASKS[run.task].digest, "seconds": 3600.0})


def test_only_what_is_missing_is_made_and_one_failure_loses_nothing(
    bench: driver.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def make_one(bench: driver.Bench, run: Run) -> None:
        asked.append(run.seed)
        if run.seed == 2:
            raise driver.RunError("exit 7")
        made(bench, run)

    monkeypatch.setattr(driver, "make_one", make_one)
    made(bench, RUNS[1])
    assert driver.make(bench, RUNS, jobs=1) == [(RUNS[2], "exit 7")]
    assert asked == [0, 2, 3]
    assert driver.make(bench, RUNS, jobs=2) == [(RUNS[2], "exit 7")]
    assert asked == [0, 2, 3, 2]


def test_a_bug_ends_the_study(
    bench: driver.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    def make_one(bench: driver.Bench, run: Run) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(driver, "make_one", make_one)
    with pytest.raises(ValueError, match="a bug"):
        driver.make(bench, RUNS, jobs=1)


def test_a_run_that_counts_waits_for_its_learning_rate(bench: driver.Bench) -> None:
    with pytest.raises(driver.RunError, match="sr-ste is not tuned"):
        driver.settings(bench, RUNS[0])


def test_a_run_takes_the_tuned_learning_rate(
    bench: driver.Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Study, "rate", lambda *_: 0.006)
    run = Run("text", "step", "1:4", 0, recipe("step"))
    assert driver.settings(bench, run) == [
        "sparsity.recipe=step",
        "sparsity.pattern=1:4",
        "train.lr=0.006",
    ]


def test_the_outlook_counts_what_is_left(bench: driver.Bench) -> None:
    for run in RUNS[:2]:
        made(bench, run)
    said = driver.outlook(bench.study, [TASKS["text"]], jobs=2)
    stages = (driver.tuning_runs, runs_that_count, cause_runs)
    runs = [run for stage in stages for run in stage([TASKS["text"]])]
    assert f"text: 2 of {len(runs)} runs, 3600 s each" in said
    assert f"about {(len(runs) - 2) / 2:.1f} hours are left" in said


@pytest.mark.slow
def test_the_whole_study_runs_a_few_steps_of_every_method(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.evidence.study", "--quick"]
    done = subprocess.run(
        [*words, "--data", str(tmp_path)], cwd=ROOT, capture_output=True, text=True
    )
    left_out = [name for name in TASKS if f"{name}: left out" in done.stderr]
    there = [task for name, task in TASKS.items() if name not in left_out]
    runs = list(quick_runs(there))
    assert f"[{len(runs)}/{len(runs)}]" in done.stdout
    assert "text" not in left_out  # it needs nothing that is not installed with it
    assert "exit" not in done.stderr
    assert done.returncode == bool(left_out)
