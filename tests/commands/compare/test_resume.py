"""A comparison that is stopped or killed ends with the bytes of one that is not."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import pytest
import torch
from commands.compare.comparisons import RECIPES, files, read, runs, words
from safetensors.torch import save_file
from small_run import CONFIG
from stopped_run import stopping_at
from torch import nn

from step_cli.training import run as run_module

Cli = Callable[..., Any]
DEAD = 2**22 + 1  # no process has this number
OFTEN = ("train.log_every=1", "train.checkpoint_every=6")
PATIENCE_S = 600
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def steps_logged(run_dir: Path) -> int:
    """How far all runs together are."""
    found = run_dir.glob("*/metrics.jsonl")
    return sum(path.read_text().count("\n") for path in found if path.is_file())


def start(argv: list[str], *launcher: str) -> "subprocess.Popen[bytes]":
    command = [sys.executable, *launcher, "-m", "step_cli", *argv]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return forks.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)


def killed_at(argv: list[str], run_dir: Path, moments: list[int]) -> list[int]:
    """Kill the comparison with -9 when so many steps are logged; then let it end.

    Returns:
        How many runs were finished each time.
    """
    finished = []
    for moment in moments:
        more = ["--resume"] if run_dir.exists() else []
        child = start([*argv, *more])
        while child.poll() is None and steps_logged(run_dir) < moment:
            time.sleep(0.002)
        child.kill()
        child.communicate()
        assert child.returncode == -signal.SIGKILL
        finished.append(len(runs(run_dir)))
    last = start([*argv, "--resume"])
    _, said = last.communicate()
    assert last.returncode == 0, said
    return finished


def test_killed_twice_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    argv = [*words(tmp_path, *OFTEN), "--recipes", "asp,step", "--seeds", "2"]
    whole = start([*argv, "--run-dir", str(tmp_path / "whole")])
    assert whole.communicate(timeout=PATIENCE_S) and whole.returncode == 0
    moments = sorted(random.Random(19).sample(range(1, 3 * 24), 2))
    cut = [*argv, "--run-dir", str(tmp_path / "cut")]
    assert max(killed_at(cut, tmp_path / "cut", moments)) < 4
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    assert {path.name for path in tmp_path.iterdir()} == {"cut", "whole", "net.py"}
    there, expected = (
        {path.name for path in (tmp_path / name).iterdir()} for name in ("cut", "whole")
    )
    assert there == expected


@pytest.mark.slow
def test_digits_killed_five_times_end_with_the_same_bytes(tmp_path: Path) -> None:
    settings = ["train.steps=30", "train.batch_size=16", "train.eval_every=15",
                "train.warmup_steps=5", "train.betas=[0.9, 0.8]", "train.log_every=1",
                "train.checkpoint_every=8"]  # fmt: skip
    argv = ["train", str(CONFIG), *RECIPES, "--patterns", "2:4,1:4", "--seeds", "3"]
    for setting in settings:
        argv += ["--set", setting]
    whole = start([*argv, "--run-dir", str(tmp_path / "whole")])
    assert whole.communicate() and whole.returncode == 0
    moments = sorted(random.Random(5).sample(range(1, 21 * 30), 5))
    cut = [*argv, "--run-dir", str(tmp_path / "cut")]
    killed_at(cut, tmp_path / "cut", moments)
    assert files(tmp_path / "cut") == files(tmp_path / "whole")
    document = read(tmp_path / "cut")
    assert [len(row["values"]) for row in document["rows"]] == [3] * 7


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """A command line without a directory, and the comparison it makes."""
    folder = tmp_path_factory.mktemp("small")
    argv = [*words(folder, *OFTEN), "--recipes", "dense,step"]
    child = start([*argv, "--run-dir", str(folder / "runs")])
    assert child.communicate(timeout=PATIENCE_S) and child.returncode == 0
    return argv, folder / "runs"


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)]
)
def test_a_signal_stops_after_the_step_and_resume_goes_on(
    small: tuple[list[str], Path],
    step_cli: Cli,
    tmp_path: Path,
    number: int,
    code: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv, whole = small
    argv = [*argv, "--run-dir", str(tmp_path / "cut")]
    with monkeypatch.context() as patch:
        patch.setattr(run_module.Trainer, "run", stopping_at(5, number))
        outcome = step_cli(*argv)
    assert outcome.code == code
    said = "run 1 of 2, dense-seed0: stopped at step 5, go on with --resume"
    assert said in outcome.error
    assert not (tmp_path / "cut" / "comparison.json").exists()
    assert step_cli(*argv, "--resume").code == 0
    assert files(tmp_path / "cut") == files(whole)


def test_a_signal_between_runs_is_heard(
    small: tuple[list[str], Path],
    step_cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv, whole = small
    argv = [*argv, "--run-dir", str(tmp_path / "cut")]
    finish = run_module.finish

    def with_signal(*given: Any) -> Any:
        report = finish(*given)
        os.kill(os.getpid(), signal.SIGTERM)
        return report

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "finish", with_signal)
        outcome = step_cli(*argv)
    assert outcome.code == 75
    assert "stopped before step-2of4-seed0, go on with --resume" in outcome.error
    assert runs(tmp_path / "cut") == ["dense-seed0"]
    assert step_cli(*argv, "--resume").code == 0
    assert files(tmp_path / "cut") == files(whole)


def test_a_signal_while_a_run_is_set_up_is_heard(
    small: tuple[list[str], Path],
    step_cli: Cli,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    argv, whole = small
    argv = [*argv, "--run-dir", str(tmp_path / "cut")]
    set_up = run_module.set_up

    def with_signal(*given: Any, **more: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return set_up(*given, **more)

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "set_up", with_signal)
        outcome = step_cli(*argv)
    assert outcome.code == 75 and "stopped at step 0" in outcome.error
    assert step_cli(*argv, "--resume").code == 0
    assert files(tmp_path / "cut") == files(whole)


def copy_of(whole: Path, path: Path) -> Path:
    shutil.copytree(whole, path)
    return path


@pytest.mark.parametrize("left", range(3))
def test_killed_while_the_files_are_written(
    small: tuple[list[str], Path], step_cli: Cli, tmp_path: Path, left: int
) -> None:
    """So many of the files are there, and the next is half written beside."""
    argv, whole = small
    cut = copy_of(whole, tmp_path / "cut")
    written = ["comparison.md", "comparison.html", "comparison.json"]
    for name in written[left:]:
        (cut / name).unlink()
    (cut / f".{written[left]}.tmp-{DEAD}").write_text("half")
    (cut / f".{written[left]}.lock").write_text(f"{DEAD} host")
    assert step_cli(*argv, "--run-dir", cut, "--resume").code == 0
    assert files(cut) == files(whole)
    assert {path.name for path in cut.iterdir()} == {p.name for p in whole.iterdir()}


def test_killed_while_a_run_shows_its_results(
    small: tuple[list[str], Path], step_cli: Cli, tmp_path: Path
) -> None:
    argv, whole = small
    cut = copy_of(whole, tmp_path / "cut")
    page_of_run = cut / "dense-seed0" / "report.html"
    good = page_of_run.read_bytes()
    page_of_run.unlink()
    (cut / "step-2of4-seed0" / "metrics.jsonl").unlink()  # only its curve needs it
    outcome = step_cli(*argv, "--run-dir", cut, "--resume")
    assert outcome.code == 0 and "1 of 2 runs are finished" in outcome.err
    assert page_of_run.read_bytes() == good
    assert files(cut) == files(whole)


@pytest.mark.parametrize(
    "damage", [b'{"step": 25, "lo', b"[1]\n", b"\0\0\n", b"\xff\n", b'{"step": "x"}\n']
)
def test_a_run_whose_records_are_damaged_is_gone_on_with(
    small: tuple[list[str], Path], step_cli: Cli, tmp_path: Path, damage: bytes
) -> None:
    argv, whole = small
    cut = copy_of(whole, tmp_path / "cut")
    records = cut / "step-2of4-seed0" / "metrics.jsonl"
    good = records.read_bytes()
    records.write_bytes(good + damage)
    outcome = step_cli(*argv, "--run-dir", cut, "--resume")
    assert outcome.code == 0 and "1 of 2 runs are finished" in outcome.err
    assert records.read_bytes() == good
    assert files(cut) == files(whole)


def test_a_run_that_died_before_its_first_checkpoint_begins_anew(
    small: tuple[list[str], Path], step_cli: Cli, tmp_path: Path
) -> None:
    argv, whole = small
    cut = copy_of(whole, tmp_path / "cut")
    torn = cut / "step-2of4-seed0"
    for name in ("checkpoints", "model"):
        shutil.rmtree(torn / name)
    for name in ("report.json", "report.html"):
        (torn / name).unlink()
    assert step_cli(*argv, "--run-dir", cut, "--resume").code == 0
    assert files(cut) == files(whole)
    report = (torn / "model" / "model.safetensors").read_bytes()
    assert report == (whole / torn.name / "model" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("begun", [True, False])
def test_an_old_comparison_returns_only_if_the_new_one_had_not_begun(
    small: tuple[list[str], Path], step_cli: Cli, tmp_path: Path, begun: bool
) -> None:
    """What `--force` leaves when it is killed: the old one aside, the new one there."""
    argv, whole = small
    old = copy_of(whole, tmp_path / f".cut.old-{DEAD}")
    (old / "of the old one").write_text("")
    cut = tmp_path / "cut"
    (cut / "dense-seed0").mkdir(parents=True)
    if begun:
        shutil.rmtree(cut / "dense-seed0")
        shutil.copytree(whole / "dense-seed0", cut / "dense-seed0")
    assert step_cli(*argv, "--run-dir", cut, "--resume").code == 0
    assert (cut / "of the old one").exists() != begun
    assert files(cut) == files(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["cut"]


@pytest.mark.parametrize("finished", [True, False])
def test_other_data_are_refused(
    small: tuple[list[str], Path], step_cli: Cli, tmp_path: Path, finished: bool
) -> None:
    argv, whole = small
    cut = copy_of(whole, tmp_path / "cut")
    shutil.rmtree(cut / "step-2of4-seed0")
    if not finished:
        (cut / "dense-seed0" / "report.json").unlink()
    record = cut / "dense-seed0" / "data.json"
    record.write_text(record.read_text().replace('"samples": ', '"samples": 1'))
    outcome = step_cli(*argv, "--run-dir", cut, "--resume")
    assert outcome.code == 4 and "not the data the run began with" in outcome.error


@pytest.mark.parametrize("dry", [False, True])
def test_other_weights_to_begin_with_are_refused(
    step_cli: Cli, tmp_path: Path, dry: bool
) -> None:
    """The runs of a seed begin alike, also those that are begun only now."""
    start_from = tmp_path / "start.safetensors"
    argv = words(tmp_path, f"model.weights={start_from}")
    argv += ["--run-dir", str(tmp_path / "runs"), "--resume"] + dry * ["--dry-run"]

    def weights(last: float) -> None:
        torch.manual_seed(0)
        layers = nn.ModuleDict({"1": nn.Linear(64, 16), "3": nn.Linear(16, 12)})
        layers["3"].bias.data[-1] = last
        save_file(layers.state_dict(), start_from)

    weights(1.0)
    begin = [word for word in argv if word not in ("--resume", "--dry-run")]
    assert step_cli(*begin, "--recipes", "dense", "--seeds", "2").code == 0
    assert step_cli(*argv, "--recipes", "dense,step").code == 0
    shutil.rmtree(tmp_path / "runs" / "step-2of4-seed0", ignore_errors=True)
    weights(1.5)
    outcome = step_cli(*argv, "--recipes", "dense,step")
    assert outcome.code == 4 and "dense-seed0: began with other w" in outcome.error
    assert not (tmp_path / "runs" / "step-2of4-seed0").exists()
    more = step_cli(*argv, "--recipes", "dense", "--seeds", "3")
    assert more.code == 4
    for begun in (tmp_path / "runs").glob("*/start.json"):  # as old versions left it
        begun.unlink()
    assert step_cli(*argv, "--recipes", "dense,step").code == 0


def test_another_teacher_is_refused(step_cli: Cli, tmp_path: Path) -> None:
    """Also to runs that are begun only now, beside those of the one before."""
    teacher = tmp_path / "teacher.safetensors"
    argv = words(tmp_path, f"distill.teacher={teacher}", "distill.from=switch")
    argv += ["--run-dir", str(tmp_path / "runs"), "--recipes"]

    def teach(seed: int) -> None:
        torch.manual_seed(seed)
        layers = {"1": nn.Linear(64, 16), "3": nn.Linear(16, 12)}
        save_file(nn.ModuleDict(layers).state_dict(), teacher)

    teach(1)
    outcome = step_cli(*argv, "dense,asp", "--seeds", "2")
    assert outcome.code == 0 and outcome.err.count("dense learns no masks") == 1
    taught = [(tmp_path / "runs" / f"{name}-seed1" / "teacher.json").exists()
              for name in ("dense", "asp-2of4")]  # fmt: skip
    assert taught == [False, True]
    page = (tmp_path / "runs" / "comparison.md").read_text()
    assert "- teacher: teacher.safetensors, weight 0.5" in page
    teach(2)
    outcome = step_cli(*argv, "dense,asp,ste", "--seeds", "2", "--resume")
    assert outcome.code == 4 and "not the teacher the run began with" in outcome.error
    teach(1)
    assert step_cli(*argv, "asp,ste", "--resume").code == 0


def test_two_processes_train_the_runs_together(
    small: tuple[list[str], Path], tmp_path: Path
) -> None:
    argv, whole = small
    argv = [*argv, "--run-dir", str(tmp_path / "both")]
    child = start(argv, *TORCHRUN)
    deadline = time.monotonic() + PATIENCE_S
    while steps_logged(tmp_path / "both") < 30 and child.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    _, said = child.communicate(timeout=PATIENCE_S)
    assert b"run 2 of 2, step-2of4-seed0: stopped at step" in said, said
    assert runs(tmp_path / "both")[0] == "dense-seed0"
    again = start([*argv, "--resume"], *TORCHRUN)
    out, said = again.communicate(timeout=PATIENCE_S)
    assert again.returncode == 0, said
    assert out.count(b"2 of 2 runs count") == 1
    ours, alone = read(tmp_path / "both"), read(whole)
    assert [row["runs"] for row in ours["rows"]] == [r["runs"] for r in alone["rows"]]
    assert ours["rows"][1]["switch_steps"] == alone["rows"][1]["switch_steps"]
    assert ours["rows"][0]["mean"] == pytest.approx(alone["rows"][0]["mean"], abs=0.01)


def test_a_run_that_fails_ends_a_comparison_of_two_processes(tmp_path: Path) -> None:
    """And none of them waits for the other."""
    argv = [*words(tmp_path, "train.lr=1e30"), "--recipes", "dense,asp"]
    child = start([*argv, "--run-dir", str(tmp_path / "runs")], *TORCHRUN)
    _, said = child.communicate(timeout=PATIENCE_S)
    assert child.returncode == 7 or b"exitcode  : 7" in said, said
    told = [line for line in said.decode().splitlines() if line.startswith("error")]
    assert len(told) == 1 and re.match(r"error: .*dense-seed0: step \d+: ", told[0]), (
        told
    )
