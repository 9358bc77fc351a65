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
from benchmarks.evidence.tasks import TASKS, Task

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


def ended(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit code of the driver."""
    monkeypatch.setattr(sys, "argv", ["study", *words])
    with pytest.raises(SystemExit) as found:
        driver.main()
    return int(found.value.code or 0)


def test_data_are_made_only_for_tasks_of_which_a_run_is_missing(
    bench: driver.Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[str] = []

    def prepare(task: Task, data: Path) -> bool:
        asked.append(task.name)
        return False  # its packages are not installed

    monkeypatch.setattr(driver, "prepare", prepare)
    monkeypatch.setattr(driver, "Study", lambda *_: bench.study)
    lacking = TASKS["text"]
    for task in TASKS.values():
        stages = (driver.tuning_runs, runs_that_count, cause_runs)
        for run in (run for stage in stages for run in stage([task])):
            made(bench, run)
    words = ("--data", str(tmp_path))
    assert ended(monkeypatch, *words) == 0
    assert asked == []
    bench.study.file(Run(lacking.name, "dense", "dense", 0)).unlink()
    bench.study._read.clear()
    assert ended(monkeypatch, *words) == 1
    assert asked == [lacking.name]


def test_the_words_of_the_readme_name_every_font_package_and_nothing_else() -> None:
    folder = ROOT / "benchmarks" / "evidence"
    lines = (folder / "README.md").read_text(encoding="utf-8").splitlines()
    (install,) = (line for line in lines if "apt-get install wordnet-base" in line)
    words = install.strip().replace("apt-get install", "echo", 1)
    done = subprocess.run(
        ["bash", "-c", words], cwd=ROOT, capture_output=True, text=True, check=True
    )
    rows = (folder / "glyphs" / "fonts.txt").read_text(encoding="utf-8").splitlines()
    listed = [row.split("\t")[0] for row in rows if not row.startswith("#")]
    assert done.stdout.split() == ["wordnet-base", *listed]


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
