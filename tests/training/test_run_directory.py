"""Who may be in a run directory, and what becomes of the run it held."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import forks
import pytest

from step_cli.config.samples import sample_directory
from step_cli.config.train import load_config
from step_cli.errors import (
    InputError,
    NonFiniteError,
    OutputError,
    StoppedError,
    UsageError,
)
from step_cli.training.run_directory import (
    refuse_impossible,
    resumed_directory,
    run_directory,
)

CONFIG = sample_directory("digits-resnet") / "config.toml"
ENDINGS = [None, NonFiniteError("the loss is nan"), StoppedError("stopped")]


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """The directory of a finished run."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "report.json").write_text("old")
    return tmp_path / "run"


def add_checkpoint(run_dir: Path) -> None:
    folder = run_dir / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    (folder / "state.json").touch()


@contextmanager
def replaced(run_dir: Path, error: BaseException | None) -> Iterator[Path]:
    """A run in the place of an old one, which ends with ``error``."""
    expected = pytest.raises(type(error)) if error else nullcontext()
    with expected, run_directory(run_dir, force=True) as path:
        yield path
        if error:
            raise error


def killed(run_dir: Path, *, checkpoint: bool) -> None:
    """What kill -9 leaves of a run that was replacing another."""
    os.rename(run_dir, run_dir.with_name(".run.old-4194304"))
    run_dir.mkdir()
    (run_dir / "config.toml").write_text("new")
    if checkpoint:
        add_checkpoint(run_dir)


@pytest.mark.parametrize("error", ENDINGS, ids=lambda e: type(e).__name__)
@pytest.mark.parametrize("checkpoint", [False, True], ids=["early", "late"])
def test_only_a_run_that_ends_or_can_go_on_replaces_another(
    old: Path, error: BaseException | None, checkpoint: bool
) -> None:
    with replaced(old, error) as path:
        assert not (path / "report.json").exists()
        if checkpoint:
            add_checkpoint(path)
    new = error is None or (checkpoint and isinstance(error, StoppedError))
    assert (old / "report.json").exists() is not new


def test_a_run_killed_before_its_first_checkpoint_gives_the_old_one_back(
    old: Path,
) -> None:
    killed(old, checkpoint=False)
    with pytest.raises(OutputError, match="exists"):
        refuse_impossible(old, force=False)
    assert (old / "report.json").read_text() == "old"
    assert [path.name for path in old.parent.iterdir()] == ["run"]


@pytest.mark.parametrize(
    "given",
    ["distill.teacher={}", "distill.teacher={}/model/model.safetensors",
     "model.weights={}/checkpoints", "model.source={}/net.py:build"],
)  # fmt: skip
def test_a_run_is_not_replaced_by_one_that_reads_it(old: Path, given: str) -> None:
    config = load_config(CONFIG, [given.format(old)])
    link = old.with_name("link")
    link.symlink_to(old)
    for path in (old, link):
        with pytest.raises(UsageError, match="would be deleted with the old run"):
            refuse_impossible(path, force=True, config=config)
    refuse_impossible(old.with_name("other"), force=True, config=config)
    refuse_impossible(old, force=True, config=load_config(CONFIG))


def test_one_killed_between_the_two_renames_too(old: Path) -> None:
    killed(old, checkpoint=False)
    (old / "config.toml").unlink()
    old.rmdir()
    with resumed_directory(old) as path:
        assert (path / "report.json").read_text() == "old"


def test_one_killed_later_can_be_resumed_and_replaces_the_old_one_at_its_end(
    old: Path,
) -> None:
    killed(old, checkpoint=True)
    with resumed_directory(old) as path:
        assert (path / "config.toml").read_text() == "new"
        assert len(list(path.parent.glob(".run.old-*"))) == 1
    assert [path.name for path in old.parent.iterdir()] == ["run"]


def test_a_directory_of_the_user_is_never_taken_for_an_old_run(old: Path) -> None:
    (mine := old.with_name(".run.old-fashioned")).mkdir()
    with run_directory(old, force=True):
        pass
    assert mine.is_dir()


def test_nothing_to_resume_makes_no_directories(tmp_path: Path) -> None:
    missing = resumed_directory(tmp_path / "a" / "b")
    with pytest.raises(InputError, match="no such run"), missing:
        pass
    assert list(tmp_path.iterdir()) == []


def test_kill_9_of_a_real_run(old: Path) -> None:
    words = [sys.executable, "-m", "step_cli", "train", str(CONFIG), "--force"]
    words += ["--run-dir", str(old), "--set", "train.checkpoint_every=100000"]
    child = forks.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 600
    while not (old / "metrics.jsonl").exists():
        assert child.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    child.kill()
    _, said = child.communicate()
    assert b"the old run is kept in" in said
    again = forks.run([*words[:5], *words[6:]], capture_output=True, check=False)
    assert again.returncode == 5 and b"exists" in again.stderr
    assert [path.name for path in old.iterdir()] == ["report.json"]


def test_a_run_that_fails_takes_the_directories_it_made_along(tmp_path: Path) -> None:
    with (
        pytest.raises(RuntimeError),
        run_directory(tmp_path / "a" / "b" / "run", force=False),
    ):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a").mkdir()
    with (
        pytest.raises(RuntimeError),
        run_directory(tmp_path / "a" / "b" / "run", force=False) as path,
    ):
        (path.parent / "another").mkdir()
        raise RuntimeError
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["another"]


def test_a_run_that_ends_keeps_them(tmp_path: Path) -> None:
    with run_directory(tmp_path / "a" / "run", force=False) as path:
        assert path.is_dir()
    assert (tmp_path / "a" / "run").is_dir()


@pytest.mark.parametrize("force", [False, True])
def test_a_file_where_a_directory_is_needed_is_told_before_any_work(
    tmp_path: Path, force: bool
) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(OutputError, match="file is a file, and a directory is needed"):
        refuse_impossible(tmp_path / "file" / "a" / "run", force=force)
    refuse_impossible(tmp_path / "new" / "run", force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("error", [StoppedError("stopped"), OutputError("full")])
def test_a_finished_run_stays_though_what_shows_it_is_missing(
    tmp_path: Path, error: BaseException
) -> None:
    with (
        pytest.raises(type(error)),
        run_directory(tmp_path / "run", force=False) as path,
    ):
        (path / "report.json").write_text("new")
        raise error
    assert (tmp_path / "run" / "report.json").read_text() == "new"
