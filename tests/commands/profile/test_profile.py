"""`autoswitch-profile` on recordings: what it decides, says and refuses."""

import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from autoswitch.recordings import record, row_of, words_of, write
from autoswitch.variance_streams import WORKED, random_samples, samples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from step_cli.autoswitch.autoswitch import (
    CRITERION_NAMES,
    SwitchRule,
    VarianceSample,
    make_criterion,
)
from step_cli.autoswitch.variance_log import VarianceHeader
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.recipes import make_recipe

Run = Callable[..., Any]
TINY = VarianceSample(1, 4, 1e-30, 1e-30, 1e-40, -80.0)


def test_baselines_fire_where_the_papers_say(step_cli: Run, tmp_path: Path) -> None:
    log = record(tmp_path / "variance.jsonl", [(1.0, 3.0)] * 1200, 0.999)
    document = step_cli("autoswitch-profile", log, "--t-min", "0", "--json").json
    assert [row["name"] for row in document["criteria"]] == list(CRITERION_NAMES)
    assert row_of(document, "relative-norm")["raw_step"] == 3
    assert row_of(document, "staleness")["raw_step"] == 1001
    assert row_of(document, "fixed")["switch_step"] == 300


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


def test_a_t_max_that_was_asked_for_decides_before_the_window_is_full(
    step_cli: Run, tmp_path: Path
) -> None:
    log = record(tmp_path / "variance.jsonl", [(1.0,)] * 200, 0.999)
    words = ("autoswitch-profile", log, "--criterion", "autoswitch", "--t-max", "100")
    row = row_of(step_cli(*words, "--json").json, "autoswitch")
    assert (row["switch_step"], row["reason"]) == (101, "t_max")
    said = "t_max decided, not the threshold: its test needs 1000 steps; lower --window"
    assert said in words_of(step_cli(*words).out)


def test_where_no_eps_decides_the_rule_that_did_is_named(
    step_cli: Run, tmp_path: Path
) -> None:
    # The change per weight grows and v faster: no eps decides between the clips.
    stream = [
        VarianceSample(t, 2, 1.5**t, 1.5**t, 1.2**t, math.log(1.2**t / 2))
        for t in range(1, 31)
    ]
    log = write(tmp_path / "variance.jsonl", stream, VarianceHeader(0.5, 1e-8, 30))
    words = ("autoswitch-profile", log, "--t-min", "0", "--json")
    document = step_cli(*words).json
    assert document["recommended"] == "autoswitch-relative"
    said = " ".join(document["advice"])
    assert (
        "autoswitch: t_max decided, not the threshold: its value was 8.47 there, "
        "against 1e-08; no eps would have: between the clips its value fell no "
        "further; autoswitch-relative did, at step 4"
    ) in said
    assert "step 4" in document["recommendation"]


def test_clipping_is_said_in_words(step_cli: Run, tmp_path: Path) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    words = ("autoswitch-profile", log, "--criterion", "autoswitch")
    late = step_cli(*words, "--eps", "1e-8", "--t-max", "10").out
    assert "t_max decided, not the threshold" in words_of(late)
    early = step_cli(*words, "--eps", "5").out
    assert "t_min decided, not the threshold" in words_of(early)
    window = step_cli(*words, "--eps", "5", "--t-min", "0").out
    assert "the window decided, not the threshold" in words_of(window)
    assert "decided, not" not in step_cli(*words, "--eps", "0.3", "--t-min", "0").out


def test_the_epsilon_that_would_have_decided_does(
    step_cli: Run, tmp_path: Path
) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    words = ("autoswitch-profile", log, "--criterion", "autoswitch", "--t-max", "10")
    outcome = step_cli(*words, "--eps", "1e-8")
    said = "an eps from 1 (step 4) down to 0.02 (step 10) would have decided"
    assert said in words_of(outcome.out)
    row = row_of(step_cli(*words, "--eps", "1e-8", "--json").json, "autoswitch")
    assert row["other_eps"][0] == {"eps": 1.0, "switch_step": 4}
    for other in row["other_eps"]:
        again = step_cli(*words, "--eps", other["eps"], "--json").json
        found = row_of(again, "autoswitch")
        assert (found["switch_step"], found["clipped"]) == (other["switch_step"], False)


def test_the_first_recommended_is_the_first_whose_threshold_decided(
    step_cli: Run, tmp_path: Path
) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    words = ("autoswitch-profile", log, "--t-min", "0", "--json")
    decided = step_cli(*words, "--eps", "0.3").json
    assert decided["recommended"] == "autoswitch"
    assert "its threshold decided, at step 6" in decided["recommendation"]
    clipped = step_cli(*words, "--eps", "5").json
    assert clipped["recommended"] == "autoswitch-relative"
    said = "; autoswitch was clipped; autoswitch-geometric was clipped"
    assert said in clipped["recommendation"]
    alone = step_cli(*words, "--eps", "5", "--criterion", "autoswitch").json
    assert alone["recommended"] == "autoswitch"
    assert "though clipping decided" in alone["recommendation"]
    baseline = step_cli(*words, "--criterion", "staleness").json
    assert baseline["recommended"] is None
    assert "baselines" in baseline["recommendation"]
    assert 'criterion = "staleness"' in baseline["switch_toml"]


def growing(ratio: float, path: Path) -> Path:
    """100 steps: v is 1 up to step 40, and then grows to this.

    v changes by 0.3 in the first part, which is little beside an eps of 0.2 for two
    coordinates, and much beside v; and by a twentieth of v in the last.
    """
    sizes = [1.0] * 40 + [1.0 + (ratio - 1) * n / 20 for n in range(1, 21)]
    sizes += [ratio] * 40
    changes = [9.0] * 8 + [0.3] * 32 + [0.3 * size for size in sizes[40:60]]
    changes += [0.05 * ratio] * 40
    stream = [
        VarianceSample(t, 2, size * (1 - 0.9**t), size, change, math.log(change / 2))
        for t, (size, change) in enumerate(zip(sizes, changes, strict=True), start=1)
    ]
    return write(path, stream, VarianceHeader(0.9, 1e-8, 100))


@pytest.mark.parametrize(
    ("ratio", "name"), [(20.0, "autoswitch-relative"), (4.0, "autoswitch")]
)
def test_the_recommended_rule_is_one_after_whose_switch_v_stays(
    step_cli: Run, tmp_path: Path, ratio: float, name: str
) -> None:
    log = growing(ratio, tmp_path / "variance.jsonl")
    words = ("autoswitch-profile", log, "--eps", "0.2", "--t-min", "5")
    words = (*words, "--t-max", "90")
    report = step_cli(*words, "--json").json
    early = row_of(report, "autoswitch")
    assert not early["clipped"] and early["switch_step"] < 40
    assert early["v_growth"] == pytest.approx(ratio)
    late = row_of(report, "autoswitch-relative")
    assert late["switch_step"] > 60 and late["v_growth"] == pytest.approx(1)
    assert report["recommended"] == name
    left_out = "v grows too far after the switch of autoswitch"
    assert (left_out in report["recommendation"]) == (ratio > 8)
    shown = words_of(step_cli(*words).out)
    said = f"autoswitch ({ratio:.3g} times its value at step {early['switch_step']})"
    assert (said in shown) == (ratio > 8)


def test_what_clipping_decided_comes_before_what_v_outgrows(
    step_cli: Run, tmp_path: Path
) -> None:
    log = growing(20.0, tmp_path / "variance.jsonl")
    words = ("autoswitch-profile", log, "--eps", "0.2", "--t-min", "5")
    report = step_cli(*words, "--t-max", "62", "--window", "30", "--json").json
    assert row_of(report, "autoswitch-relative")["reason"] == "t_max"
    assert report["recommended"] == "autoswitch-relative"
    assert report["recommendation"] == (
        "autoswitch-relative, though clipping decided: v grows too far after the "
        "switch of autoswitch and autoswitch-geometric, and no other AutoSwitch rule "
        "was decided by its threshold alone"
    )
    alone = step_cli(*words, "--criterion", "autoswitch", "--json").json
    assert alone["recommended"] == "autoswitch"  # nothing else is left
    assert alone["recommendation"].endswith(
        "between the clips; v grows too far after the switch of autoswitch, so none is "
        "safe"
    )


def test_a_switch_while_v_is_zero_is_said_to_be_unsafe(
    step_cli: Run, tmp_path: Path
) -> None:
    stream = [VarianceSample(t, 2, 0.0, 0.0, 0.0, None) for t in range(1, 31)]
    stream += [VarianceSample(t, 2, 1.0, 1.0, 0.3, -2.0) for t in range(31, 61)]
    log = write(tmp_path / "variance.jsonl", stream, VarianceHeader(0.9, 1e-8, 60))
    words = ("autoswitch-profile", log, "--criterion", "autoswitch", "--t-min", "15")
    shown = words_of(step_cli(*words).out)
    assert "v grows too far after the switch of autoswitch, so none is safe" in shown
    assert "the switch of autoswitch (from 0 at step 16): frozen" in shown


def test_where_v_outgrows_every_switch_none_is_said_to_be_safe(
    step_cli: Run, tmp_path: Path
) -> None:
    log = growing(20.0, tmp_path / "variance.jsonl")
    words = ("autoswitch-profile", log, "--criterion", "autoswitch", "--criterion",
             "autoswitch-relative", "--window", "5", "--t-max", "35",
             "--json")  # fmt: skip
    for eps, said in (
        ("0.2", "autoswitch: its threshold decided, at step 13, between the clips"),
        ("9", "autoswitch, though clipping decided: no AutoSwitch rule was decided by "
              "its threshold alone"),
    ):  # fmt: skip
        report = step_cli(*words, "--eps", eps, "--t-min", "5").json
        growths = [row["v_growth"] for row in report["criteria"]]
        assert growths == [pytest.approx(20)] * 2
        assert report["recommendation"] == (
            f"{said}; v grows too far after the switch of autoswitch and "
            "autoswitch-relative, so none is safe"
        )


@pytest.mark.parametrize("name", CRITERION_NAMES)
@given(seed=st.integers(0, 10_000))
@settings(
    max_examples=12,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_a_replay_decides_what_the_optimizer_decided(
    step_cli: Run, tmp_path: Path, name: str, seed: int
) -> None:
    rng = random.Random(seed)
    steps, beta2 = 50, rng.choice([0.5, 0.8, 0.9, 0.99])  # windows 2 to 100
    eps = None if name == "autoswitch-relative" else 10 ** rng.uniform(-7, -1)
    t_min = rng.randint(0, 20)
    t_max, fixed = t_min + rng.randint(0, 25), rng.randint(1, 60)
    criterion = make_criterion(name, beta2=beta2, eps=eps, step=fixed)
    weight = torch.nn.Parameter(torch.ones(4, 8))
    group = {"params": [weight], "pattern": "2:4", "axis": 1}
    optimizer = SparseOptimizer(
        torch.optim.AdamW([group], betas=(0.9, beta2)),
        make_recipe("step", {}),
        SwitchRule(criterion, t_min, t_max),
        record=True,
    )
    torch.manual_seed(seed)
    fall, stream = rng.uniform(0.8, 1.0), []
    for step in range(steps):
        weight.grad = fall**step * torch.randn(4, 8)
        optimizer.step()
        sample = optimizer.variance_sample()
        stream += [] if sample is None else [sample]
    log = write(tmp_path / "v.jsonl", stream, VarianceHeader(beta2, 1e-8, steps))
    words = ["autoswitch-profile", log, "--criterion", name, "--json"]
    words += ["--t-min", t_min, "--t-max", t_max, "--step", fixed]
    words += [] if eps is None else ["--eps", repr(eps)]
    row = row_of(step_cli(*words).json, name)
    decided = optimizer.switch_step, optimizer.switch_reason or "never"
    assert (row["switch_step"], row["reason"]) == decided


def test_what_the_run_asked_for_is_what_is_replayed(
    step_cli: Run, tmp_path: Path
) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5, steps=24)
    (tmp_path / "config.toml").write_text(
        '[model]\nsource = "sample:digits-resnet"\n[data]\nsource = "digits"\n'
        '[train]\nsteps = 24\nseed = 3\n[switch]\ncriterion = "fixed"\nstep = 7\n'
        "eps = 0.3\nwindow = 3\nt_min = 0\nt_max = 20\n"
    )
    document = step_cli("autoswitch-profile", tmp_path, "--json").json
    assert (document["eps"], document["window"], document["t_max"]) == (0.3, 3, 20)
    assert row_of(document, "fixed")["switch_step"] == 7
    typed = ("--eps", "0.1", "--window", "2", "--t-max", "0.5", "--step", "5")
    document = step_cli("autoswitch-profile", log, *typed, "--json").json
    assert (document["eps"], document["window"], document["t_max"]) == (0.1, 2, 12)
    assert row_of(document, "fixed")["switch_step"] == 5


def test_a_recording_of_a_sparse_run_is_told(step_cli: Run, tmp_path: Path) -> None:
    record(tmp_path / "variance.jsonl", WORKED, 0.5, steps=24)
    said = "recorded by the recipe ste: its v is not that of a dense run"
    for recipe, told in (("ste", True), ("step", False), ("dense", False)):
        (tmp_path / "config.toml").write_text(
            '[model]\nsource = "sample:digits-resnet"\n[data]\nsource = "digits"\n'
            f'[train]\nsteps = 24\n[sparsity]\nrecipe = "{recipe}"\n'
        )
        advice = step_cli("autoswitch-profile", tmp_path, "--json").json["advice"]
        assert (said in advice) is told


def test_eps_is_the_threshold_of_our_rule_where_it_alone_is_asked_for(
    step_cli: Run, tmp_path: Path
) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    words = ("autoswitch-profile", log, "--eps", "0.25", "--json")
    both = step_cli(*words).json
    assert row_of(both, "autoswitch-relative")["threshold"] == 0.5
    assert row_of(both, "autoswitch")["threshold"] == 0.25
    alone = step_cli(*words, "--criterion", "autoswitch-relative").json
    assert row_of(alone, "autoswitch-relative")["threshold"] == 0.25


def test_only_the_first_steps_are_looked_at(step_cli: Run, tmp_path: Path) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    words = ("autoswitch-profile", log, "--eps", "0.3", "--t-min", "0", "--json")
    document = step_cli(*words, "--steps", "5").json
    assert document["steps"] == 5
    assert row_of(document, "autoswitch")["switch_step"] is None
    assert row_of(document, "autoswitch")["reason"] == "never"
    document = step_cli(*words, "--steps", "6").json
    assert row_of(document, "autoswitch")["switch_step"] == 6
    document = step_cli(*words, "--steps", "100").json
    assert "--steps 100: only 24 are recorded" in document["advice"]


def test_no_switch_after_the_end_of_the_training(step_cli: Run, tmp_path: Path) -> None:
    log = record(tmp_path / "variance.jsonl", [(1.0, 2.0)] * 40, 0.5, steps=10)
    words = ("autoswitch-profile", log, "--eps", "1e-9", "--t-max", "1.0", "--json")
    outcome = step_cli(*words, "--criterion", "autoswitch")
    row = row_of(outcome.json, "autoswitch")
    assert outcome.code == 1
    assert (row["switch_step"], row["switch_toml"], row["raw_toml"]) == (None,) * 3
    assert row["raw_step"] > 10
    said = " ".join(outcome.json["advice"])
    assert "autoswitch: its threshold of 1e-09 was not passed in 10 steps" in said
    assert "steps 11 to 40 come after the end of the training" in said


def test_without_a_header_options_or_defaults_apply(
    step_cli: Run, tmp_path: Path
) -> None:
    log = record(tmp_path / "variance.jsonl", [(1.0,)] * 30, 0.5, header=False)
    assert step_cli("autoswitch-profile", log, "--json").json["beta2"] == 0.999
    document = step_cli("autoswitch-profile", log, "--beta2", "0.5", "--json").json
    assert (document["window"], document["steps"]) == (2, 30)


def test_what_the_sums_cannot_answer_about_another_beta2_is_refused(
    step_cli: Run, tmp_path: Path
) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    outcome = step_cli("autoswitch-profile", log, "--beta2", "0.9")
    assert outcome.code == 2 and "recorded with 0.5" in outcome.error
    assert "--criterion staleness --criterion fixed" in outcome.error
    assert step_cli("autoswitch-profile", log, "--beta2", "0.5").code == 0


@pytest.mark.parametrize("asked", [0.5, 0.8, 0.95, 0.99])
def test_what_they_can_answer_is_what_another_run_records(
    step_cli: Run, tmp_path: Path, asked: float
) -> None:
    rng = random.Random(0)
    gradients = [(rng.gauss(0, 1), rng.gauss(0, 2)) for _ in range(400)]
    words = ("--criterion", "staleness", "--t-min", "0", "--json", "--beta2", asked)
    logs = [
        record(tmp_path / f"{beta2}.jsonl", gradients, beta2) for beta2 in (0.9, asked)
    ]
    found, fresh = (step_cli("autoswitch-profile", log, *words).json for log in logs)
    assert found["beta2"] == fresh["beta2"] == asked
    assert found["window"] == fresh["window"]
    one, other = (row_of(document, "staleness") for document in (found, fresh))
    assert one["switch_step"] == other["switch_step"]
    assert one["value"] == pytest.approx(other["value"], rel=1e-6)
    assert one["post_switch_change"] is None  # nobody knows


def test_too_far_a_beta2_is_refused_as_rounding_would_answer(
    step_cli: Run, tmp_path: Path
) -> None:
    gradients = [(1.0,)] * 50 + [(1e-6,)] * 500
    log = record(tmp_path / "variance.jsonl", gradients, 0.999)
    words = ("autoswitch-profile", log, "--criterion", "staleness", "--beta2")
    assert "rounding" in step_cli(*words, "0.9").error
    assert step_cli(*words, "0.99").code == 0


def test_another_beta2_needs_every_step(step_cli: Run, tmp_path: Path) -> None:
    stream = [s for s in samples(WORKED, 0.5) if s.step != 3]
    log = write(tmp_path / "variance.jsonl", stream, VarianceHeader(0.5, 1e-8, 24))
    words = ("autoswitch-profile", log, "--criterion", "fixed", "--beta2", "0.6")
    assert "steps are missing" in step_cli(*words).error
    same = step_cli(*words[:-1], "0.5", "--json").json
    assert "not recorded are some steps" in " ".join(same["advice"])


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


@pytest.mark.parametrize("options", [["--seeds", "2"], ["--out", "x"], ["--force"]])
def test_options_of_a_training_are_refused_with_a_recording(
    step_cli: Run, tmp_path: Path, options: list[str]
) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    outcome = step_cli("autoswitch-profile", log, *options)
    assert outcome.code == 2 and f"{options[0]}: for a training" in outcome.error


def test_layers_are_told_the_last_to_be_ready_first(
    step_cli: Run, tmp_path: Path
) -> None:
    from step_cli.autoswitch.variance_log import RecordedLayer, header_line, sample_line

    layers = (
        RecordedLayer("early", 2),
        RecordedLayer("never", 3),
        RecordedLayer("l", 1),
    )
    text = header_line(VarianceHeader(0.5, 1e-8, 20, layers))
    stream = random_samples(0, 20, 0.5)
    for sample in stream:
        falling = [2 * 0.5**sample.step, 3.0, 0.9**sample.step]
        text += sample_line(sample, [(4.0, change) for change in falling])
    log = tmp_path / "variance.jsonl"
    log.write_text(text)
    words = ("autoswitch-profile", log, "--eps", "0.3", "--criterion", "fixed")
    found = step_cli(*words, "--step", "5", "--json").json["layers"]
    # Window 2: the mean of 0.9^11 and 0.9^12 is .298, of .5^2 and .5^1 above 0.3.
    told = [(row["name"], row["ready_step"]) for row in found]
    assert told == [("never", None), ("l", 12), ("early", 3)]
    assert found[2]["change"] == pytest.approx((0.5**4 + 0.5**5) / 2)
    assert found[2]["relative_change"] == pytest.approx((0.5**3 + 0.5**4) / 2 / 4)
    shown = words_of(step_cli(*words, "--step", "5").out)
    assert "never 3 never never" in shown and "l 1 12 2" in shown
