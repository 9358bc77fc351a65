"""The hand-worked examples of the switch criteria, through the command."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from autoswitch.recordings import record, row_of, write
from autoswitch.variance_streams import WORKED

from step_cli.autoswitch.autoswitch import VarianceSample

Run = Callable[..., Any]


def at_step(step_cli: Run, log: Path, name: str, step: int, *more: object) -> Any:
    """The row of a criterion that has to switch after ``step``, one way or another."""
    clip = ("--t-min", step - 1, "--t-max", step - 1)
    words = ("autoswitch-profile", log, "--criterion", name, *clip, *more, "--json")
    row = row_of(step_cli(*words).json, name)
    assert row["switch_step"] == step
    return row


@pytest.mark.parametrize(
    ("options", "step", "raw", "reason", "clipped"),
    [
        (["--eps", "0.3", "--t-min", "0"], 6, 6, "threshold", False),
        # Strict: the mean of exactly 0.5 at step 4 does not fire.
        (["--eps", "0.5", "--t-min", "0"], 5, 5, "threshold", False),
        (["--eps", "0.3", "--t-min", "2", "--t-max", "10"], 6, 6, "threshold", False),
        (["--eps", "0.3", "--t-min", "8", "--t-max", "20"], 9, 6, "threshold", True),
        (["--eps", "1e-8", "--t-min", "0", "--t-max", "10"], 11, None, "t_max", True),
        (["--eps", "2", "--t-min", "0"], 2, 2, "threshold", True),  # the window decided
    ],
)
def test_where_autoswitch_fires(
    step_cli: Run, tmp_path: Path, options: list[str], step: int, raw: int | None,
    reason: str, clipped: bool,
) -> None:  # fmt: skip
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    words = ("autoswitch-profile", log, "--criterion", "autoswitch", *options)
    outcome = step_cli(*words, "--json")
    assert outcome.code == 0
    assert outcome.json["window"] == 2
    row = row_of(outcome.json, "autoswitch")
    found = (row["switch_step"], row["raw_step"], row["reason"], row["clipped"])
    assert found == (step, raw, reason, clipped)


@pytest.mark.parametrize(
    ("step", "mean"), [(2, 1.25), (3, 1.0), (4, 0.5), (5, 0.41875), (6, 0.253125)]
)
def test_the_windowed_means(
    step_cli: Run, tmp_path: Path, step: int, mean: float
) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    assert at_step(step_cli, log, "autoswitch", step)["value"] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("step", "change"),
    [(1, 1), (2, 1.5), (3, 0.5), (4, 0.5), (5, 0.3375), (6, 0.16875)],
)
def test_the_change_of_each_step(
    step_cli: Run, tmp_path: Path, step: int, change: float
) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    row = at_step(step_cli, log, "autoswitch", step, "--window", "1")
    assert row["value"] == pytest.approx(change)


@pytest.mark.parametrize(
    ("step", "mean"), [(2, 1.414214), (3, 0.5), (4, 0.484123), (5, 0.315446)]
)
def test_the_geometric_means(
    step_cli: Run, tmp_path: Path, step: int, mean: float
) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    row = at_step(step_cli, log, "autoswitch-geometric", step, "--window", "1")
    assert row["value"] == pytest.approx(mean, abs=1e-6)


def test_a_coordinate_that_does_not_change_is_left_out_of_the_geometric_mean(
    step_cli: Run, tmp_path: Path
) -> None:
    log = record(tmp_path / "variance.jsonl", WORKED, 0.5)
    row = at_step(step_cli, log, "autoswitch-geometric", 1, "--window", "1")
    assert row["value"] == pytest.approx(2.0)  # of (2, 0); not 0, which would switch


@pytest.mark.parametrize(
    ("changes", "mean"), [((0.5, 0.125), 0.25), ((1e-3, 1e-5), 1e-4)]
)
def test_the_geometric_mean_is_not_the_reciprocal_that_the_paper_prints(
    step_cli: Run, tmp_path: Path, changes: tuple[float, float], mean: float
) -> None:
    log_mean = sum(map(math.log, changes)) / 2
    sample = VarianceSample(1, 2, 1.0, 1.0, sum(changes), log_mean)
    log = write(tmp_path / "variance.jsonl", [sample])
    row = at_step(step_cli, log, "autoswitch-geometric", 1, "--window", "1")
    assert row["value"] == pytest.approx(mean)


@pytest.mark.parametrize(
    ("beta2", "window"), [(0.999, 1000), (0.95, 20), (0.98, 50), (0.99, 100), (0.5, 2)]
)
def test_the_window_is_rounded_not_floored(
    step_cli: Run, tmp_path: Path, beta2: float, window: int
) -> None:
    log = record(tmp_path / "variance.jsonl", [(1.0,)] * 3, beta2)
    assert step_cli("autoswitch-profile", log, "--json").json["window"] == window


def test_no_criterion_of_the_window_fires_before_it_is_full(
    step_cli: Run, tmp_path: Path
) -> None:
    tiny = [VarianceSample(t, 4, 1e-30, 1e-30, 1e-40, -80.0) for t in range(1, 200)]
    log = write(tmp_path / "variance.jsonl", tiny)
    words = ("autoswitch-profile", log, "--beta2", "0.99", "--t-min", "0", "--json")
    document = step_cli(*words).json
    for name in ("autoswitch", "autoswitch-geometric", "autoswitch-relative"):
        assert row_of(document, name)["switch_step"] == 100


def test_the_change_scales_with_the_square_of_the_loss(
    step_cli: Run, tmp_path: Path
) -> None:
    one = record(tmp_path / "one.jsonl", WORKED, 0.5)
    tripled = [(3 * a, 3 * b) for a, b in WORKED]
    three = record(tmp_path / "three.jsonl", tripled, 0.5)
    values = [at_step(step_cli, log, "autoswitch", 9)["value"] for log in (one, three)]
    assert values[1] == pytest.approx(9 * values[0])
    words = ("--criterion", "autoswitch-relative", "--t-min", "0", "--json")
    documents = [step_cli("autoswitch-profile", x, *words).json for x in (one, three)]
    rows = [row_of(document, "autoswitch-relative") for document in documents]
    assert rows[0]["switch_step"] == rows[1]["switch_step"]


@pytest.mark.parametrize("beta2", [0.9, 0.95, 0.99, 0.999])
def test_equation_10_fires_at_step_3_on_constant_gradients(
    step_cli: Run, tmp_path: Path, beta2: float
) -> None:
    log = record(tmp_path / "variance.jsonl", [(1.0, 2.0)] * 30, beta2)
    words = ("autoswitch-profile", log, "--t-min", "0", "--json")
    row = row_of(step_cli(*words).json, "relative-norm")
    found = (row["switch_step"], row["raw_step"], row["clipped"])
    assert found == (3, 3, False)


@pytest.mark.parametrize(("step", "ratio"), [(2, 0.999), (3, 0.49925), (4, 0.33267)])
def test_the_ratios_of_equation_10(
    step_cli: Run, tmp_path: Path, step: int, ratio: float
) -> None:
    log = record(tmp_path / "variance.jsonl", [(1.0, 2.0)] * 6, 0.999)
    row = at_step(step_cli, log, "relative-norm", step)
    assert row["value"] == pytest.approx(ratio, abs=1e-5)


@pytest.mark.parametrize(
    ("before", "after", "ratio", "fires"),
    [(4, 5, 0.25, True), (1, 2, 1.0, False), (5, 3, 0.4, True)],
)
def test_equation_10_on_its_examples(
    step_cli: Run, tmp_path: Path, before: float, after: float, ratio: float,
    fires: bool,
) -> None:  # fmt: skip
    norms = enumerate((before, after), start=1)
    stream = [VarianceSample(t, 1, v, v, 1.0, 0.0) for t, v in norms]
    log = write(tmp_path / "variance.jsonl", stream)
    row = at_step(step_cli, log, "relative-norm", 2)
    assert row["value"] == pytest.approx(ratio)
    assert row["reason"] == ("threshold" if fires else "t_max")


def test_equation_11_fires_after_one_window_on_constant_gradients(
    step_cli: Run, tmp_path: Path
) -> None:
    log = record(tmp_path / "variance.jsonl", [(1.0,)] * 2000, 0.999)
    words = ("autoswitch-profile", log, "--t-min", "0", "--t-max", "1.0", "--json")
    row = row_of(step_cli(*words).json, "staleness")
    assert row["switch_step"] == row["raw_step"] == 1001
    assert row["value"] == pytest.approx(632.67, abs=0.01)
    late = at_step(step_cli, log, "staleness", 2000)
    assert late["value"] == pytest.approx(1.368, abs=0.001)


@pytest.mark.parametrize(
    ("before", "after", "ratio", "fires"),
    [(10, 9.7, 0.97, True), (10, 9.5, 0.95, False), (10, 30, 3.0, True)],
)
def test_equation_11_on_its_examples(
    step_cli: Run, tmp_path: Path, before: float, after: float, ratio: float,
    fires: bool,
) -> None:  # fmt: skip
    norms = enumerate((before, after), start=1)
    stream = [VarianceSample(t, 1, v, v, 1.0, 0.0) for t, v in norms]
    log = write(tmp_path / "variance.jsonl", stream)
    row = at_step(step_cli, log, "staleness", 2, "--window", "1")
    assert row["value"] == pytest.approx(ratio)
    assert row["reason"] == ("threshold" if fires else "t_max")


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


@pytest.mark.parametrize(("beta2", "minimum"), [(0.999, 1228), (0.99, 123), (0.5, 2)])
def test_the_minimum_of_theorem_1(
    step_cli: Run, tmp_path: Path, beta2: float, minimum: int
) -> None:
    # The bias correction of v is below sqrt 2 from there on.
    assert 1 / (1 - beta2**minimum) < math.sqrt(2) < 1 / (1 - beta2 ** (minimum - 1))
    log = record(tmp_path / "variance.jsonl", [(1.0,)] * (minimum + 1), beta2)
    words = ("autoswitch-profile", log, "--criterion", "fixed", "--json", "--step")
    for step, met in ((minimum - 1, False), (minimum, True)):
        document = step_cli(*words, step).json
        assert document["theorem_1_minimum"] == minimum
        assert row_of(document, "fixed")["meets_theorem_1"] is met


def test_noise_this_small_leaves_nothing_to_eps(step_cli: Run, tmp_path: Path) -> None:
    import random

    rng = random.Random(0)
    said = {}
    for sigma in (1e-3, 1e-2):  # the bound is 3.2e-3 at beta2 = 0.999
        noise = [tuple(rng.gauss(0, sigma) for _ in range(20)) for _ in range(1500)]
        log = record(tmp_path / f"{sigma}.jsonl", noise, 0.999)
        words = (
            "autoswitch-profile",
            log,
            "--criterion",
            "autoswitch",
            "--t-max",
            1200,
        )
        said[sigma] = " ".join(step_cli(*words).out.split())
    assert "root mean square, are below the 3.2e-03" in said[1e-3]
    assert "the window decided" in said[1e-3]
    assert "t_max decided" in said[1e-2] and "root mean" not in said[1e-2]
