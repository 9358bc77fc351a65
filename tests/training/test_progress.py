"""What is told of a run while it is trained: on a terminal, in a log, or not at all."""

import io
import logging
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import forks
import pytest
from rich.console import Console
from small_run import CONFIG, NET, set_words, small_config
from small_training import build, train

from step_cli.autoswitch.autoswitch import AutoSwitch, Staleness, SwitchRule
from step_cli.render.text import duration
from step_cli.training import run as run_module
from step_cli.training.progress import Progress, switch_words

VALUES = {"step": 3, "flip_rate": 0.015, "eval_loss": 0.5, "eval_accuracy": 0.875}


def shown(progress: Progress, width: int = 80) -> list[str]:
    out = io.StringIO()
    Console(file=out, width=width).print(progress.draw())
    return [line.rstrip() for line in out.getvalue().splitlines()]


def by_autoswitch(
    window: int, eps: float, t_min: int = 0, t_max: int = 9
) -> SwitchRule:
    return SwitchRule(AutoSwitch(0.9, eps, window), t_min, t_max)


def test_the_criterion_is_told_from_its_window_to_the_switch() -> None:
    rule = by_autoswitch(3, eps=1e-30, t_max=4)
    model, optimizer = build("step", steps=12, switch=rule)
    assert switch_words(optimizer) == "autoswitch, window 0/3, steps 3 to 5"
    train(model, optimizer, 2)
    assert switch_words(optimizer) == "autoswitch, window 2/3, steps 3 to 5"
    train(model, optimizer, 2)
    found = re.fullmatch(
        r"autoswitch ([0-9.e-]+) > 1e-30, window 3/3, steps 3 to 5",
        switch_words(optimizer),
    )
    assert found and float(found[1]) == pytest.approx(rule.value, rel=1e-2)
    train(model, optimizer, 1)
    assert switch_words(optimizer) == "was after step 5 (t_max)"


def test_a_value_that_waits_for_t_min_is_told_below_its_threshold() -> None:
    model, optimizer = build("step", steps=12, switch=by_autoswitch(1, 1e9, 5))
    train(model, optimizer, 6)
    assert "threshold" in switch_words(optimizer)
    rule = SwitchRule(Staleness(0.9, 1), 20, 30)
    model, optimizer = build("step", steps=40, switch=rule)
    optimizer.state_dict()  # nothing to read yet
    train(model, optimizer, 4)
    optimizer.state_dict()  # has the rule read what it would read at step 21
    assert re.match(r"staleness [0-9.e+]+ > 0.96, ", switch_words(optimizer))


@pytest.mark.parametrize("recipe", ["dense", "ste"])
def test_a_recipe_without_a_switch_tells_none(recipe: str) -> None:
    _, optimizer = build(recipe, steps=12)
    assert switch_words(optimizer) == ""


def test_the_display_holds_what_is_worth_watching() -> None:
    model, optimizer = build("step", steps=12, switch=by_autoswitch(2, 1e-30, t_max=4))
    progress = Progress(optimizer, 12)
    assert len(shown(progress)) == 2  # nothing but the bar, and the switch
    train(model, optimizer, 3)
    progress.on_step(3, 0.25, 1e-3)
    progress.on_log({**VALUES, "pruned_eval_loss": 1.5})
    lines = "\n".join(shown(progress))
    for words in (
        "3/12", "steps/s", "left", "precondition   loss 0.2500  lr 0.001",
        "switch         autoswitch", "held-out       loss 0.5000  accuracy 0.8750",
        "at step 3", "pruned twin    loss 1.5000", "mask flips 1.50% a step",
    ):  # fmt: skip
        assert words in lines
    progress.on_log({"step": 4, "flip_rate": None})
    assert "accuracy 0.8750  at step 3" in "\n".join(shown(progress))


@pytest.mark.parametrize("width", [20, 40, 80, 200])
def test_the_display_fits_its_terminal(width: int) -> None:
    model, optimizer = build("step", steps=12, switch=by_autoswitch(2, 1e-30, t_max=4))
    progress = Progress(optimizer, 12)
    train(model, optimizer, 3)
    progress.on_step(3, 0.25, 1e-3)
    progress.on_log({**VALUES, "pruned_eval_loss": 1.5})
    lines = shown(progress, width)
    assert len(lines) == 5
    assert all(len(line) <= width for line in lines)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (7322, "2:02:02")],
)
def test_what_is_left_is_told_as_on_a_clock(seconds: float, words: str) -> None:
    assert duration(seconds) == words


def test_a_log_tells_each_evaluation_and_the_switch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "step_cli"):
        run_module.train(small_config(tmp_path), tmp_path / "run")
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split(",")[0] for line in lines] == [
        "step 8 of 24", "step 12: switched to mask-learning (t_max)", "step 16 of 24",
        "step 24 of 24",
    ]  # fmt: skip
    assert "precondition, loss " in lines[0] and "held-out loss 2" in lines[0]
    assert re.search(r"accuracy 0\.\d{4}, autoswitch [0-9.e-]+ > 1e-30", lines[0])
    assert "autoswitch" not in lines[2] and "mask-learning" in lines[2]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    net = tmp_path / "net.py"
    net.write_text(NET)
    words = [sys.executable, "-m", "step_cli", "train", str(CONFIG)]
    return [*words, "--run-dir", str(tmp_path / "run"), *set_words(net)]


def written_to_a_terminal(words: list[str], env: dict[str, str]) -> Iterator[bytes]:
    leader, follower = os.openpty()
    plain = {"CI", "NO_COLOR", "TERM"}
    kept = {key: value for key, value in os.environ.items() if key not in plain}
    environment = {**kept, "TERM": "xterm", **env}
    with forks.Popen(words, stdout=follower, stderr=follower, env=environment) as child:
        os.close(follower)
        while True:
            try:
                yield os.read(leader, 4096)
            except OSError:  # the other end was closed
                break
    os.close(leader)
    assert child.returncode == 0


def test_a_terminal_shows_the_display_and_keeps_the_log(words: list[str]) -> None:
    more = ["--set", "train.steps=120", "--set", "train.eval_every=40"]
    written = b"".join(written_to_a_terminal([*words, *more], {})).decode()
    assert "\x1b[2K" in written or "\x1b[1A" in written  # lines are drawn anew
    for said in ("/120", "window", "note: step 40 of 120", "switched to mask-learning"):
        assert said in written
    assert written.count("\x1b[?25l") == 1  # and the cursor is back at once
    assert "\x1b[?25h" in written[: written.index("/120")]
    end = written[written.rindex("note: step 120 of 120") :]
    assert "eval_accuracy" in end and "━ 1" not in end.split("metric")[1]


@pytest.mark.parametrize(
    ("env", "more", "said"),
    [
        ({"CI": "true"}, [], True),
        ({"NO_COLOR": "1"}, [], True),
        ({"TERM": "dumb"}, [], True),
        ({}, ["--quiet"], False),
    ],
    ids=str,
)
def test_no_display_where_it_is_not_wanted(
    words: list[str], env: dict[str, str], more: list[str], said: bool
) -> None:
    written = b"".join(written_to_a_terminal([*words, *more], env)).decode()
    assert "window" not in written
    assert ("note: step 8 of 24" in written) is said
    # But for the colour of the verdict.
    assert ("\x1b" in written) is not bool(env or more)


def test_the_losses_of_a_run_with_a_teacher_are_told() -> None:
    _, optimizer = build("ste", steps=12)
    progress = Progress(optimizer, 12)
    progress.on_step(3, 0.5, 1e-3)
    progress.on_log(VALUES | {"task_loss": 0.75, "distill_loss": None})
    assert not any("teacher" in line for line in shown(progress))
    progress.on_log(VALUES | {"task_loss": 0.75, "distill_loss": 0.25})
    line = next(line for line in shown(progress) if line.startswith("teacher"))
    assert line.split(maxsplit=1)[1] == "task loss 0.7500  distillation loss 0.2500"
