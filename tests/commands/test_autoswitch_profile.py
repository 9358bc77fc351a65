"""`autoswitch-profile` on hand-worked recordings and on real runs."""

import json
import math
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from step_cli.core.autoswitch import CRITERION_NAMES, VarianceSample
from step_cli.formats.variance_log import VarianceHeader, header_line, sample_line
from step_cli.samples import sample_directory

Run = Callable[..., Any]
CONFIG = sample_directory("digits-resnet") / "config.toml"

# Two coordinates, beta2 = 0.5, the gradients of the hand-worked example.
WORKED = [(2, 0), (2, 2), (2, 1), (1.5, 1.5)] + [(1.4, 1.2)] * 20


def record(
    path: Path,
    gradients: Iterable[tuple[float, ...]],
    beta2: float,
    header: bool = True,
    steps: int | None = None,
) -> Path:
    """Write what a slow Adam would record."""
    lines, v = [], None
    for step, grads in enumerate(gradients, start=1):
        v = v or [0.0] * len(grads)
        new = [beta2 * a + (1 - beta2) * g * g for a, g in zip(v, grads, strict=True)]
        change = [abs(a - b) for a, b in zip(new, v, strict=True)]
        logs = [math.log(c) for c in change if c]
        mean_log = sum(logs) / len(logs) if logs else None
        l2 = math.sqrt(sum(a * a for a in new))
        sample = VarianceSample(step, len(v), sum(new), l2, sum(change), mean_log)
        lines.append(sample_line(sample))
        v = new
    first = header_line(VarianceHeader(beta2, 1e-8, steps)) if header else ""
    path.write_text(first + "".join(lines))
    return path


@pytest.mark.parametrize(
    ("options", "step", "raw", "reason", "clipped"),
    [
        (["--eps", "0.3", "--t-min", "0"], 6, 6, "threshold", False),
        (["--eps", "0.5", "--t-min", "0"], 5, 5, "threshold", False),
        (["--eps", "0.3", "--t-min", "2", "--t-max", "10"], 6, 6, "threshold", False),
        (["--eps", "0.3", "--t-min", "8", "--t-max", "20"], 9, 6, "threshold", True),
        (["--eps", "1e-8", "--t-min", "0", "--t-max", "10"], 11, None, "t_max", True),
        (["--eps", "2", "--t-min", "0"], 2, 2, "threshold", True),  # the window decided
    ],
)
def test_the_hand_worked_example(
    step_cli: Run, tmp_path: Path, options: list[str], step: int, raw: int | None,
    reason: str, clipped: bool,
) -> None:  # fmt: skip
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    outcome = step_cli(
        "autoswitch-profile", log, "--criterion", "autoswitch", *options, "--json"
    )
    assert outcome.code == 0
    assert outcome.json["window"] == 2
    (row,) = outcome.json["criteria"]
    assert row["switch_step"] == step
    assert row["raw_step"] == raw
    assert row["reason"] == reason
    assert row["clipped"] is clipped


def test_baselines_fire_where_the_papers_say(step_cli: Run, tmp_path: Path) -> None:
    log = record(tmp_path / "variance.jsonl", [(1.0, 3.0)] * 1200, 0.999)
    document = step_cli("autoswitch-profile", log, "--t-min", "0", "--json").json
    rows = {row["name"]: row for row in document["criteria"]}
    assert set(rows) == set(CRITERION_NAMES)
    assert rows["relative-norm"]["raw_step"] == 3
    assert rows["staleness"]["raw_step"] == 1001
    assert rows["fixed"]["switch_step"] == 300


def test_the_metric_of_table_1_sums_1001_steps(step_cli: Run, tmp_path: Path) -> None:
    log = record(tmp_path / "variance.jsonl", [(1.0,)] * 1300, 0.5)
    words = ("autoswitch-profile", log, "--criterion", "fixed", "--json")
    (row,) = step_cli(*words, "--step", "2").json["criteria"]
    # v_t = 1 - 0.5^t, so the change of step t is 0.5^t; t0 = 2 sums t = 3 to 1003.
    assert row["post_switch_change"] == pytest.approx(0.25 / 1000)
    (row,) = step_cli(*words, "--step", "299").json["criteria"]
    assert row["post_switch_change"] is not None
    (row,) = step_cli(*words, "--step", "300").json["criteria"]
    assert row["post_switch_change"] is None


def test_a_criterion_asked_for_that_never_fires_is_exit_1(
    step_cli: Run, tmp_path: Path
) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    words = ["autoswitch-profile", log, "--eps", "1e-30", "--t-max", "1.0"]
    outcome = step_cli(*words, "--criterion", "autoswitch", "--json")
    assert outcome.code == 1
    (row,) = outcome.json["criteria"]
    assert row["switch_step"] is None and row["reason"] == "never"
    assert outcome.err == ""
    assert step_cli(*words).code == 0  # others fire


def test_a_window_longer_than_the_run_says_what_to_lower(
    step_cli: Run, tmp_path: Path
) -> None:
    log = record(tmp_path / "variance.jsonl", [(1.0,)] * 200, 0.999)
    outcome = step_cli(
        "autoswitch-profile", log, "--criterion", "autoswitch", "--t-max", "1.0"
    )
    assert outcome.code == 1
    assert "needs 1000 steps, has 200; lower --window" in " ".join(outcome.out.split())


def test_clipping_is_said_in_words(step_cli: Run, tmp_path: Path) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    words = ("autoswitch-profile", log, "--criterion", "autoswitch")
    late = step_cli(*words, "--eps", "1e-8", "--t-max", "10").out
    assert "t_max decided, not the threshold" in " ".join(late.split())
    early = step_cli(*words, "--eps", "5").out
    assert "the first step it may fire at decided" in " ".join(early.split())
    assert "decided, not" not in step_cli(*words, "--eps", "0.3", "--t-min", "0").out


NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))
"""


@pytest.mark.parametrize("criterion", CRITERION_NAMES)
@pytest.mark.parametrize("seed", range(3))
def test_a_replay_decides_what_train_decided(
    step_cli: Run, tmp_path: Path, criterion: str, seed: int
) -> None:
    rng = random.Random(f"{criterion} {seed}")
    (tmp_path / "net.py").write_text(NET)
    options = {
        "model.source": f"{tmp_path}/net.py:build", "train.steps": 40,
        "train.warmup_steps": 0, "train.eval_every": 40, "train.batch_size": 16,
        "train.betas": "[0.9, 0.8]", "train.seed": seed,
        "switch.criterion": criterion, "switch.t_min": rng.randint(0, 10),
        "switch.t_max": rng.randint(15, 35), "switch.step": rng.randint(1, 30),
    }  # fmt: skip
    if criterion in ("autoswitch", "autoswitch-geometric"):
        options["switch.eps"] = 10 ** rng.uniform(-7, -4)
    overrides = [word for k, v in options.items() for word in ("--set", f"{k}={v}")]
    run = tmp_path / "run"
    decided = step_cli("train", CONFIG, "--run-dir", run, *overrides, "--json").json
    extra = ["--step", options["switch.step"]] if criterion == "fixed" else []
    words = ("autoswitch-profile", run, "--criterion", criterion, "--json", *extra)
    (row,) = step_cli(*words).json["criteria"]
    assert row["switch_step"] == decided["switch"]["step"]
    assert row["reason"] == decided["switch"]["reason"]


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        ('{"step": 3}', 4, "line 4: v_l1, v_l2, dv_l1, dv_log, d missing"),
        ("[1, 2]", 4, "line 4: not a JSON object"),
        ("nonsense", 4, "line 4: not JSON"),
        ("", 4, "line 4: not JSON"),
        ('{"step":3,"v_l1":NaN,"v_l2":1,"dv_l1":1,"dv_log":0,"d":1}', 7, "v_l1 is nan"),
        ('{"step":3,"v_l1":-1,"v_l2":1,"dv_l1":1,"dv_log":0,"d":1}', 4, "negative"),
        ('{"step":2,"v_l1":1,"v_l2":1,"dv_l1":1,"dv_log":0,"d":1}', 4, "after step 2"),
        (
            '{"step":3,"v_l1":"x","v_l2":1,"dv_l1":1,"dv_log":0,"d":1}',
            4,
            "not a number",
        ),
        ('{"step":3.5,"v_l1":1,"v_l2":1,"dv_l1":1,"dv_log":0,"d":1}', 4, "whole"),
        ('{"step":3,"v_l1":1,"v_l2":1,"dv_l1":1,"dv_log":0,"d":0}', 4, "whole"),
        ("[" * 100_000, 4, "line 4: not JSON"),
    ],
)
def test_a_damaged_recording_is_told_with_its_line(
    step_cli: Run, tmp_path: Path, line: str, code: int, words: str
) -> None:
    log = record(tmp_path / "variance.jsonl", [(1.0,)] * 2, 0.5)
    with log.open("a") as file:
        file.write(line + "\n")
    outcome = step_cli("autoswitch-profile", log)
    assert outcome.code == code
    assert words in outcome.error


def test_a_torn_last_line_crlf_and_a_byte_order_mark_are_fine(
    step_cli: Run, tmp_path: Path
) -> None:
    log = record(tmp_path / "a.jsonl", WORKED, 0.5)
    expected = step_cli("autoswitch-profile", log, "--json").out
    other = tmp_path / "b.jsonl"
    text = log.read_text().replace("\n", "\r\n") + '{"step": 25, "v_l'
    other.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert step_cli("autoswitch-profile", other, "--json").out == expected


def test_without_a_header_options_or_defaults_apply(
    step_cli: Run, tmp_path: Path
) -> None:
    log = record(tmp_path / "variance.jsonl", [(1.0,)] * 30, 0.5, header=False)
    assert step_cli("autoswitch-profile", log, "--json").json["beta2"] == 0.999
    document = step_cli("autoswitch-profile", log, "--beta2", "0.5", "--json").json
    assert (document["window"], document["steps"]) == (2, 30)


def test_another_beta2_than_the_recorded_is_refused(
    step_cli: Run, tmp_path: Path
) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    outcome = step_cli("autoswitch-profile", log, "--beta2", "0.9")
    assert outcome.code == 2 and "recorded with 0.5" in outcome.error
    assert step_cli("autoswitch-profile", log, "--beta2", "0.5").code == 0


@pytest.mark.parametrize("kind", ["newer", "empty", "directory", "other"])
def test_what_is_no_recording_is_refused(
    step_cli: Run, tmp_path: Path, kind: str
) -> None:
    path = tmp_path / ("x.bin" if kind == "other" else "x.jsonl")
    if kind == "directory":
        path.mkdir()
    else:
        schema = '{"schema": "step-cli/variance/2"}\n'
        path.write_text(schema if kind == "newer" else "")
    outcome = step_cli("autoswitch-profile", path)
    assert outcome.code == 4
    assert str(path) in outcome.error


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_the_plot_is_drawn_and_is_the_same_each_time(
    step_cli: Run, tmp_path: Path, suffix: str
) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    plots = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for plot in plots:
        assert step_cli("autoswitch-profile", log, "--plot", plot).code == 0
    magic = {"svg": b"<?xml", "png": b"\x89PNG"}[suffix]
    assert plots[0].read_bytes().startswith(magic)
    assert plots[0].read_bytes() == plots[1].read_bytes()


def test_the_plot_never_replaces_the_recording(step_cli: Run, tmp_path: Path) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    (tmp_path / "link.svg").symlink_to(log)
    before = log.read_bytes()
    outcome = step_cli("autoswitch-profile", log, "--plot", tmp_path / "link.svg")
    assert outcome.code == 2
    assert log.read_bytes() == before


def test_json_holds_what_the_contract_says(step_cli: Run, tmp_path: Path) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    document = step_cli("autoswitch-profile", log, "--json").json
    assert document["schema"] == "step-cli/autoswitch-profile/1"
    assert {"ok", "steps", "beta2", "eps", "window", "criteria", "recommended"} <= set(
        document
    )
    assert {
        "name", "switch_step", "reason", "clipped", "raw_step", "post_switch_change",
    } <= set(document["criteria"][0])  # fmt: skip
    assert json.dumps(document)
