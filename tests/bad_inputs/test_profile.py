"""Rows A01-A08: `autoswitch-profile` on what is damaged, short, or asked wrongly."""

import json
import os
import random
import re
from pathlib import Path

import pytest
from autoswitch.recordings import record, row_of, write
from autoswitch.variance_streams import WORKED, random_samples, samples
from bad_inputs.console import Run, promised, state, step_cli

from step_cli.autoswitch.variance_log import VarianceHeader

SOUND = '{"step": 3, "v_l1": 1, "v_l2": 1, "dv_l1": 1, "dv_log": 0, "d": 1}'


def refused(folder: Path, code: int, words: str, *arguments: object) -> Run:
    """Run; one error line and one document say why, and nothing changes."""
    before = state(folder)
    run = step_cli("autoswitch-profile", *arguments, "--json")
    assert (run.code, len(run.errors)) == (code, 1), run.err
    assert re.search(words, run.errors[0]), run.err
    document = run.json
    assert document["schema"] == "step-cli/autoswitch-profile/1"
    assert (document["ok"], document["error"]["exit"]) == (False, code)
    assert state(folder) == before
    promised(run)
    return run


def damaged(folder: Path, line: str) -> Path:
    """A recording whose fourth line is ``line``."""
    path = record(folder / "variance.jsonl", [(1.0,)] * 2, 0.5)
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{line}\n{SOUND.replace('3', '9', 1)}\n")
    return path


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"step": 3}', "line 4: v_l1, v_l2, dv_l1, dv_log, d missing"),
        ("[1, 2]", "line 4: not a JSON object"),
        ('"text"', "line 4: not a JSON object"),
        ("nonsense", "line 4: not JSON"),
        (SOUND.replace('"d": 1', '"d": 1.5'), "line 4: step and d are whole numbers"),
        (SOUND.replace('"d": 1', '"d": 0'), "line 4: step and d are whole numbers"),
    ],
)
def test_A01_a_line_that_is_no_sample(tmp_path: Path, line: str, words: str) -> None:
    refused(tmp_path, 4, words, damaged(tmp_path, line))


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("m.safetensors", b"\x08\0\0\0\0\0\0\0{}      ", "give a training configur"),
        ("v.jsonl", b"", "no step is recorded"),
        ("v.jsonl", b'{"schema": "step-cli/variance/2"}\n', "newer step-cli"),
        ("v.jsonl", b'{"schema": "step-cli/variance/1"}\n', "no step is recorded"),
        ("v.jsonl", b"\xff\xfe" + "{}".encode("utf-16"), "not UTF-8|no step"),
        ("v.jsonl", b"\0" * 5000 + b"\n", "line 1: not JSON"),
        ("v.jsonl", b"<!DOCTYPE html>\n<html>\n", "line 1: not JSON"),
        ("config.toml", b"\xff", "not utf-8"),
    ],
)
def test_A01_a_source_of_another_kind(
    tmp_path: Path, name: str, content: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(content)
    refused(tmp_path, 4, words, tmp_path / name)


def test_A01_a_source_that_is_no_file(tmp_path: Path) -> None:
    refused(tmp_path, 4, "no such file", tmp_path / "none.jsonl")
    refused(tmp_path, 4, "no such file", tmp_path / "none.toml")
    refused(tmp_path, 4, "not a run directory", tmp_path)
    (tmp_path / "link.jsonl").symlink_to("nowhere")
    refused(tmp_path, 4, "no such file", tmp_path / "link.jsonl")
    refused(tmp_path, 4, "name too long", tmp_path / ("a" * 300 + ".jsonl"))
    for name in ("pipe.jsonl", "variance.jsonl"):
        os.mkfifo(tmp_path / name)
    refused(tmp_path, 4, "not a regular file", tmp_path / "pipe.jsonl")
    refused(tmp_path, 4, "no variance.jsonl in it", tmp_path)
    (tmp_path / "zero.jsonl").symlink_to("/dev/zero")
    refused(tmp_path, 4, "not a regular file", tmp_path / "zero.jsonl")


@pytest.mark.skipif(os.geteuid() == 0, reason="root ignores modes")
def test_A01_a_source_that_may_not_be_read(tmp_path: Path) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    log.chmod(0)
    refused(tmp_path, 4, "permission denied", log)


@pytest.mark.parametrize(
    "header",
    [
        None,
        VarianceHeader(0.999, 1e-8),
        VarianceHeader(0.999, 1e-8, 200),
        VarianceHeader(0.999, 1e-8, 1500),
    ],
)
@pytest.mark.parametrize("clip", [[], ["--t-max", "1.0"]])
def test_A02_fewer_steps_than_the_window(
    tmp_path: Path, header: VarianceHeader | None, clip: list[str]
) -> None:
    stream = samples([(1.0,)] * 200, 0.999)
    log = write(tmp_path / "variance.jsonl", stream, header)
    words = ("autoswitch-profile", log, "--criterion", "autoswitch", *clip)
    run = step_cli(*words)
    promised(run)
    assert run.code == 1
    said = " ".join(run.out.split())
    assert "autoswitch: needs 1000 steps, has 200; lower --window" in said
    row = row_of(step_cli(*words, "--json").json, "autoswitch")
    assert (row["switch_step"], row["reason"]) == (None, "never")
    assert row["switch_toml"] is None
    lower = step_cli(*words, "--window", "50", "--eps", "1", "--json")
    assert lower.code == 0


def test_A02_holds_for_every_window(tmp_path: Path) -> None:
    log = record(tmp_path / "variance.jsonl", [(1.0,)] * 200, 0.999, header=False)
    document = step_cli("autoswitch-profile", log, "--json").json
    steps = {row["name"]: row["switch_step"] for row in document["criteria"]}
    assert {name for name, step in steps.items() if step is not None} == {
        "relative-norm", "fixed",
    }  # fmt: skip
    assert document["recommended"] is None
    said = " ".join(document["advice"])
    assert "staleness: needs 1001 steps, has 200; lower --window" in said
    fewer = ("--steps", "199", "--window", "200", "--criterion", "autoswitch")
    assert step_cli("autoswitch-profile", log, *fewer).code == 1


def test_A03_a_criterion_that_never_fires(tmp_path: Path) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    words = ("autoswitch-profile", log, "--eps", "1e-30", "--t-max", "1.0", "--json")
    run = step_cli(*words, "--criterion", "autoswitch", "--criterion", "fixed")
    promised(run)
    assert run.code == 1
    row = row_of(run.json, "autoswitch")
    assert (row["switch_step"], row["raw_step"], row["reason"]) == (None, None, "never")
    assert (row["switch_toml"], row["post_switch_change"]) == (None, None)
    assert step_cli(*words).code == 0  # by default one is enough
    late = ("--step", "1.0", "--t-min", "1.0", "--steps", "20")
    none = step_cli(*words[:-1], *late, "--json")
    assert none.code == 1
    assert {each["switch_step"] for each in none.json["criteria"]} == {None}


@pytest.mark.parametrize(
    ("line", "code", "words"),
    [
        (SOUND.replace('v_l1": 1', 'v_l1": NaN'), 7, "line 4: v_l1 is nan"),
        (SOUND.replace('v_l2": 1', 'v_l2": Infinity'), 7, "line 4: v_l2 is inf"),
        (SOUND.replace('dv_l1": 1', 'dv_l1": -Infinity'), 7, "line 4: dv_l1 is -inf"),
        (SOUND.replace('dv_log": 0', 'dv_log": NaN'), 7, "line 4: dv_log is nan"),
        (SOUND.replace('v_l2": 1', 'v_l2": 1e300'), 7, "line 4: v_l2 .*beyond all"),
        (SOUND.replace('v_l1": 1', 'v_l1": -1'), 4, "line 4: v_l1 is negative"),
        (SOUND.replace('dv_l1": 1', 'dv_l1": -1e-9'), 4, "line 4: dv_l1 is negative"),
        (SOUND.replace("3", "2", 1), 4, "line 4: step 2 after step 2"),
        (SOUND.replace("3", "1", 1), 4, "line 4: step 1 after step 2"),
        (SOUND.replace("3", "-3", 1), 4, "line 4: step is negative"),
        (SOUND.replace("3", "9" * 400, 1), 7, r"step is 9{12}\.\.\. \(400 digits\)"),
        (SOUND.replace("3", "9" * 5000, 1), 4, "line 4: not JSON"),
    ],
)
def test_A04_numbers_that_cannot_be(
    tmp_path: Path, line: str, code: int, words: str
) -> None:
    refused(tmp_path, code, words, damaged(tmp_path, line))


def test_A01_recordings_that_are_not_seeds_of_one_run(tmp_path: Path) -> None:
    for seed, beta2 in enumerate((0.5, 0.9)):
        folder = tmp_path / f"seed-{seed}"
        folder.mkdir()
        record(folder / "variance.jsonl", WORKED, beta2)
    refused(tmp_path, 4, "seed-1/variance.jsonl: recorded with other set", tmp_path)


def test_A04_steps_that_are_missing_are_told(tmp_path: Path) -> None:
    stream = [s for s in random_samples(0, 40, 0.5) if s.step not in (7, 8)]
    log = write(tmp_path / "variance.jsonl", stream, VarianceHeader(0.5, 1e-8, 40))
    run = step_cli("autoswitch-profile", log, "--json")
    assert run.code == 0
    assert run.json["steps"] == 38
    assert "some steps before" in " ".join(run.json["advice"])


def test_A05_a_torn_line(tmp_path: Path) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    whole = step_cli("autoswitch-profile", log, "--json").json
    text = log.read_text()
    log.write_bytes(b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode() + b'{"step"')
    run = step_cli("autoswitch-profile", log, "--json")
    promised(run)
    assert run.code == 0
    document = run.json
    assert document["advice"].pop(0) == "the last line is torn and left out"
    assert document == whole
    log.write_text(text[:-30] + "\n" + SOUND.replace("3", "30", 1) + "\n")
    refused(tmp_path, 4, "line 25: not JSON", log)


@pytest.mark.slow
def test_A05_a_large_file_takes_no_more_memory_than_a_small_one(tmp_path: Path) -> None:
    rng = random.Random(0)
    peaks = []
    for lines in (20_000, 1_000_000):
        log = tmp_path / f"{lines}.jsonl"
        with log.open("w") as file:
            for step in range(1, lines + 1):
                numbers = f'"v_l1": {rng.random()!r}, "v_l2": 0.1, "dv_l1": 1e-3'
                file.write(f'{{"step": {step}, {numbers}, "dv_log": -7, "d": 9}}\n')
        run = step_cli(
            "autoswitch-profile", log, "--json", "--plot", tmp_path / "p.svg"
        )
        assert run.code == 0 and run.json["steps"] == lines
        peaks.append(run.peak_mib)
    assert peaks[1] < peaks[0] + 40 < 300


def test_A06_the_same_recording_gives_the_same_document(tmp_path: Path) -> None:
    stream = random_samples(1, 300, 0.9)
    log = write(tmp_path / "variance.jsonl", stream, VarianceHeader(0.9, 1e-8, 300))
    found = {
        step_cli("autoswitch-profile", log, "--json", env=env).out
        for env in (
            {"PYTHONHASHSEED": "1", "OMP_NUM_THREADS": "1"},
            {"PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "2"},
        )
    }
    assert len(found) == 1
    assert json.loads(found.pop())["ok"]


def test_A07_a_plot_that_cannot_be_drawn(tmp_path: Path) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    refused(tmp_path, 2, "use one of .svg, .png, .html", log, "--plot", "a.pdf")
    refused(tmp_path, 5, "no such directory", log, "--plot", tmp_path / "no" / "a.svg")
    refused(tmp_path, 2, "output is the input", log, "--plot", linked(log))


def linked(log: Path) -> Path:
    link = log.with_suffix(".svg")
    if not link.exists():
        link.symlink_to(log)
    return link


@pytest.mark.parametrize(
    ("library", "suffix"), [("matplotlib", "svg"), ("jinja2", "html")]
)
def test_A07_without_its_library(tmp_path: Path, library: str, suffix: str) -> None:
    import sys

    import forks

    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    old = tmp_path / f"p.{suffix}"
    old.write_text("old")
    script = (
        f"import io, sys; sys.modules[{library!r}] = None\n"
        "from step_cli.cli.app import run; sys.exit(run(sys.argv[1:], io.StringIO()))"
    )
    words = [sys.executable, "-c", script, "autoswitch-profile", log, "--plot", old]
    done = forks.run(words, torch=False, capture_output=True, text=True, check=False)
    assert done.returncode == 6
    assert f"drawing needs {library}: pip install 'step-cli[train]'" in done.stderr
    assert old.read_text() == "old"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--criterion", "autoswich"], "no such criterion .*did you mean autoswitch"),
        (["--beta2", "1"], "--beta2: expected less than 1"),
        (["--beta2", "0"], "--beta2: expected greater than 0"),
        (["--beta2", "nan"], "--beta2: expected"),
        (["--eps", "0"], "--eps: expected greater than 0"),
        (["--eps", "-1e-8"], "--eps: expected greater than 0"),
        (["--eps", "inf"], "--eps: expected a finite number"),
        (["--t-min", "20", "--t-max", "10"], "--t-min: 20 lies after t_max 10"),
        (["--t-max", "1"], "--t-max: 1 lies before t_min 2"),
        (["--t-min", "-1"], "--t-min: expected a step"),
        (["--t-max", "1.5"], "--t-max: expected a step"),
        (["--steps", "0"], "--steps: expected greater than or equal to 1"),
        (["--window", "0"], "--window: expected greater than or equal to 1"),
        (["--seeds", "0"], "--seeds: expected greater than or equal to 1"),
        (["--seeds", "3"], "--seeds: for a training configuration"),
        (["--out", "x"], "--out: for a training configuration"),
        (["--set", "train.seed=1"], "--set: for a training configuration"),
    ],
)
def test_A08_what_is_asked_wrongly(
    tmp_path: Path, options: list[str], words: str
) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    refused(tmp_path, 2, words, log, *options)
