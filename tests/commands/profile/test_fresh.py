"""`autoswitch-profile` on a training configuration: it trains, records and decides."""

import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import pytest
from autoswitch.recordings import row_of, words_of

from step_cli.autoswitch.autoswitch import CRITERION_NAMES
from step_cli.config.samples import sample_directory

Run = Callable[..., Any]
NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
"""
CONFIG = """
[model]
source = "net.py:build"
[data]
source = "digits"
[train]
steps = 40
batch_size = 16
lr = 1e-2
betas = [0.9, 0.8]
eval_every = 40
[switch]
eps = 2e-6
t_min = 8
t_max = 30
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    path = tmp_path / "config.toml"
    path.write_text(CONFIG)
    return path


def test_it_records_until_all_is_decided_and_1000_more(
    step_cli: Run, config: Path, tmp_path: Path
) -> None:
    before = sorted(tmp_path.glob("[!_]*"))  # Python may leave byte code
    outcome = step_cli("autoswitch-profile", config, "--json")
    assert outcome.code == 0, outcome.err
    document = outcome.json
    last = max(row["switch_step"] for row in document["criteria"])
    assert last == 31
    assert document["steps"] == last + 1001
    assert document["total_steps"] == 40
    assert all(row["post_switch_change"] > 0 for row in document["criteria"])
    assert {row["name"] for row in document["layers"]} == {
        "1.weight", "1.bias", "3.weight", "3.bias",
    }  # fmt: skip
    assert sorted(tmp_path.glob("[!_]*")) == before


def test_steps_says_otherwise(step_cli: Run, config: Path) -> None:
    words = ("autoswitch-profile", config, "--steps", "35", "--json")
    document = step_cli(*words).json
    assert document["steps"] == 35
    assert {row["post_switch_change"] for row in document["criteria"]} == {None}
    alone = ("--criterion", "relative-norm", "--t-min", "2", "--json")
    found = step_cli("autoswitch-profile", config, *alone).json
    assert found["steps"] == found["criteria"][0]["switch_step"] + 1001


def test_the_run_is_kept_and_replays_to_the_same(
    step_cli: Run, config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "kept"
    words = ("--steps", "60", "--json")
    fresh = step_cli("autoswitch-profile", config, "--out", out, *words).json
    again = step_cli("autoswitch-profile", out, "--json").json
    assert fresh.pop("run_dir") == str(out) and again.pop("run_dir") is None
    assert fresh == again
    kept = tomllib.loads((out / "config.toml").read_text())
    assert kept["sparsity"]["recipe"] == "dense"
    assert kept["train"]["eval_every"] == 40
    assert json.loads((out / "autoswitch.json").read_text())["criteria"]
    refused = step_cli("autoswitch-profile", config, "--out", out)
    assert refused.code == 5 and "--force" in refused.error
    forced = ("--out", out, "--force", "--steps", "10")
    assert step_cli("autoswitch-profile", config, *forced).code == 0
    assert len((out / "variance.jsonl").read_text().splitlines()) == 11


@pytest.mark.parametrize("held", ["config.toml", "net.py"])
def test_a_directory_that_holds_what_is_read_is_not_replaced(
    step_cli: Run, config: Path, tmp_path: Path, held: str
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    for path in (config, tmp_path / "net.py"):
        (mine / path.name).write_bytes(path.read_bytes())
    source = (mine if held == config.name else tmp_path) / config.name
    net = (mine if held == "net.py" else tmp_path) / "net.py"
    words = ("autoswitch-profile", source, "--set", f"model.source={net}:build",
             "--steps", "10", "--force", "--out")  # fmt: skip
    outcome = step_cli(*words, mine)
    assert outcome.code == 2 and held in outcome.error
    assert "name another" in outcome.error
    assert len(list(mine.iterdir())) == 2
    assert step_cli(*words, tmp_path / "other").code == 0


def test_seeds_give_mean_and_spread(
    step_cli: Run, config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "kept"
    words = ("--criterion", "autoswitch", "--criterion", "fixed", "--steps", "40")
    several = ("autoswitch-profile", config, "--seeds", "3", "--out", out, *words)
    document = step_cli(*several, "--json").json
    assert [seed["seed"] for seed in document["seeds"]] == [0, 1, 2]
    steps = [row_of(seed, "autoswitch")["switch_step"] for seed in document["seeds"]]
    spread = row_of(document, "autoswitch")["switch_steps"]
    assert spread["count"] == 3
    assert spread["mean"] == pytest.approx(sum(steps) / 3)
    assert (spread["min"], spread["max"]) == (min(steps), max(steps))
    mean = sum(steps) / 3
    variance = sum((step - mean) ** 2 for step in steps) / 2
    assert spread["std"] == pytest.approx(variance**0.5)
    assert row_of(document, "fixed")["switch_steps"]["std"] == 0
    alone = step_cli(
        "autoswitch-profile", config, "--set", "train.seed=2", *words, "--json"
    ).json
    assert row_of(alone, "autoswitch")["switch_step"] == steps[2]
    assert row_of(alone, "autoswitch")["switch_steps"] is None
    kept = step_cli("autoswitch-profile", out, *words, "--json").json
    assert kept["seeds"] == document["seeds"]
    shown = words_of(step_cli("autoswitch-profile", out, *words).out)
    assert f"{mean:.4g} ±" in shown


def train(step_cli: Run, config: Path, run: Path, *more: object) -> dict[str, Any]:
    outcome = step_cli("train", config, "--run-dir", run, *more, "--json")
    assert outcome.code == 0, outcome.err
    report: dict[str, Any] = outcome.json
    return report


@pytest.mark.parametrize("criterion", CRITERION_NAMES)
def test_train_switches_where_the_profile_of_its_configuration_says(
    step_cli: Run, config: Path, tmp_path: Path, criterion: str
) -> None:
    switch = f'[switch]\ncriterion = "{criterion}"\nstep = 0.3\n'
    if criterion == "autoswitch-relative":
        switch += "eps = 0.19\n"
    text = config.read_text().replace("[switch]\n", switch)
    config.write_text(text.replace("eps = 2e-6\n", "", criterion.endswith("relative")))
    decided = train(step_cli, config, tmp_path / "run")["switch"]
    words = ("--criterion", criterion, "--steps", "40", "--json")
    for source in (config, tmp_path / "run"):
        row = row_of(step_cli("autoswitch-profile", source, *words).json, criterion)
        assert (row["switch_step"], row["reason"]) == (
            decided["step"],
            decided["reason"],
        )


def test_train_and_its_profile_agree_on_a_run_shorter_than_the_window(
    step_cli: Run, config: Path, tmp_path: Path
) -> None:
    config.write_text(config.read_text().replace("0.8", "0.999"))
    run = tmp_path / "run"
    decided = train(step_cli, config, run)["switch"]
    assert (decided["step"], decided["reason"]) == (31, "t_max")
    words = ("--criterion", "autoswitch", "--json")
    for source in (config, run, run / "variance.jsonl"):
        steps = ("--steps", "40") if source == config else ()
        outcome = step_cli("autoswitch-profile", source, *words, *steps)
        row = row_of(outcome.json, "autoswitch")
        assert (row["switch_step"], row["reason"]) == (31, "t_max")
    # Without the run's configuration nobody has asked for a t_max.
    alone = tmp_path / "alone.jsonl"
    alone.write_bytes((run / "variance.jsonl").read_bytes())
    row = row_of(step_cli("autoswitch-profile", alone, *words).json, "autoswitch")
    assert (row["switch_step"], row["reason"]) == (None, "never")
    asked = step_cli("autoswitch-profile", alone, *words, "--t-max", "30").json
    assert row_of(asked, "autoswitch")["switch_step"] == 31


@pytest.mark.parametrize("criterion", CRITERION_NAMES)
def test_the_switch_block_makes_train_switch_there(
    step_cli: Run, config: Path, tmp_path: Path, criterion: str
) -> None:
    config.write_text(config.read_text().replace("eps = 2e-6", "eps = 1e-4"))
    words = ("autoswitch-profile", config, "--criterion", criterion, "--steps", "45")
    document = step_cli(*words, "--json").json
    row = row_of(document, criterion)
    shown = step_cli(*words).out
    assert row["switch_toml"] in shown.replace("\r", "")
    base = config.read_text().partition("[switch]")[0]
    for number, key in enumerate(("switch_step", "raw_step")):
        block = row[("switch_toml", "raw_toml")[number]]
        assert tomllib.loads(block)["switch"]["criterion"] == criterion
        pasted = tmp_path / f"{key}.toml"
        pasted.write_text(f"{base}\n{block}")
        report = train(step_cli, pasted, tmp_path / key)
        assert report["switch"]["step"] == row[key]
        assert report["switch"]["criterion"] == criterion


def test_a_beta2_that_is_typed_is_trained_with(step_cli: Run, config: Path) -> None:
    words = ("autoswitch-profile", config, "--steps", "30", "--json")
    typed = step_cli(*words, "--beta2", "0.9").json
    assert (typed["beta2"], typed["window"]) == (0.9, 10)
    changed = step_cli(*words, "--set", "train.betas=[0.9, 0.9]").json
    assert typed["criteria"] == changed["criteria"]


@pytest.mark.parametrize(
    ("more", "code", "said"),
    [
        (["--set", "train.optimizer=sgd"], 2, "sgd has no variance"),
        (["--set", f"switch.window=1{'0' * 20}"], 2, "switch.window: expected less th"),
        (["--set", "train.stpes=3"], 2, "did you mean train.steps|did you mean steps"),
        (["--steps", "0"], 2, "--steps: expected greater than or equal to 1"),
        (["--set", "train.seed=2147483647", "--seeds", "2"], 2, "--seeds: from 21"),
        (["--t-min", "35"], 2, "--t-min: 35 lies after t_max 30"),
        (["--plot", "no/such/place.svg"], 5, "no such directory"),
        (["--out", "no/../config.toml"], 5, "exists"),
    ],
)
def test_what_cannot_work_is_told_before_torch_is_imported(
    config: Path, more: list[str], code: int, said: str
) -> None:
    import re

    script = (
        "import io, sys\n"
        "from step_cli.cli.app import run\n"
        "code = run(sys.argv[1:], io.StringIO())\n"
        "assert 'torch' not in sys.modules\n"
        "sys.exit(code)"
    )
    (config.parent / "no").mkdir()
    (config.parent / "no" / "such").touch()
    words = [sys.executable, "-c", script, "autoswitch-profile", str(config), *more]
    done = forks.run(
        words, torch=False, capture_output=True, text=True, cwd=config.parent
    )
    assert done.returncode == code, done.stderr
    assert re.search(said, done.stderr), done.stderr
    assert done.stderr.count("error: ") == 1


def test_a_model_that_cannot_train_is_refused(
    step_cli: Run, config: Path, tmp_path: Path
) -> None:
    (tmp_path / "net.py").write_text(NET.rstrip() + ".requires_grad_(False)\n")
    outcome = step_cli("autoswitch-profile", config, "--steps", "3")
    assert outcome.code == 3, outcome.err
    assert "no parameter of the model requires gradients" in outcome.error


def test_a_failed_training_leaves_nothing(
    step_cli: Run, config: Path, tmp_path: Path
) -> None:
    out = tmp_path / "kept"
    (tmp_path / "net.py").write_text(NET.replace("Tanh()", "Threshold(2, 1e38)"))
    outcome = step_cli("autoswitch-profile", config, "--out", out)
    assert outcome.code == 7, outcome.err
    assert not list(tmp_path.glob("*kept*"))


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)]
)
def test_a_signal_ends_it_and_leaves_nothing(
    config: Path, tmp_path: Path, number: int, code: int
) -> None:
    out = tmp_path / "kept"
    words = [sys.executable, "-m", "step_cli", "autoswitch-profile", str(config)]
    words += ["--out", str(out), "--steps", "1000000"]
    process = forks.Popen(words, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 600
    while time.monotonic() < end and process.poll() is None:
        log = out / "variance.jsonl"
        if log.exists() and log.stat().st_size > 2000:
            break
        time.sleep(0.05)
    os.kill(process.pid, number)
    error = process.communicate(timeout=600)[1]
    assert process.returncode == code, error
    assert "Traceback" not in error
    assert not list(tmp_path.glob("*kept*"))


@pytest.mark.slow
def test_the_sample_is_profiled(step_cli: Run, tmp_path: Path) -> None:
    source = sample_directory("digits-resnet") / "config.toml"
    plot = tmp_path / "profile.html"
    outcome = step_cli("autoswitch-profile", source, "--plot", plot, "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["recommended"] == "autoswitch"
    assert plot.stat().st_size > 10_000
