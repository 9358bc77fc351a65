"""curves.svg shows what the criterion compared; the same run draws the same bytes."""

import json
import math
import re
from pathlib import Path

import pytest
from small_run import small_config

from step_cli.config.train import TrainConfig
from step_cli.recipes import make_recipe
from step_cli.reports import SwitchPoint
from step_cli.training.curves import draw_curves
from step_cli.training.history import POINTS, Curve, History, read_history
from step_cli.training.run import train
from step_cli.training.setup import switch_rule

pytestmark = pytest.mark.draws


def history_of(run_dir: Path, config: TrainConfig) -> History:
    rule = switch_rule(config, make_recipe(config.sparsity.recipe, {}))
    switch = json.loads((run_dir / "report.json").read_text())["switch"]
    return read_history(run_dir, config, rule, switch and SwitchPoint(**switch))


def words_of(run_dir: Path) -> str:
    """All text of the picture."""
    svg = (run_dir / "curves.svg").read_text()
    return "\n".join(re.findall(r"<text[^>]*>([^<]+)</text>", svg))


def test_the_windowed_mean_is_that_of_a_slow_loop(tmp_path: Path) -> None:
    config = small_config(tmp_path, "switch.window=5")
    train(config, tmp_path / "run")
    lines = (tmp_path / "run" / "variance.jsonl").read_text().splitlines()[1:]
    changes = [(r := json.loads(line))["dv_l1"] / r["d"] for line in lines]
    assert len(changes) == 12
    seen = history_of(tmp_path / "run", config).criterion
    assert seen is not None
    assert seen.change.values == pytest.approx(changes)
    assert seen.value.steps == list(range(1, 13))
    assert all(math.isnan(value) for value in seen.value.values[:4])
    slow = [sum(changes[end - 5 : end]) / 5 for end in range(5, 13)]
    assert seen.value.values[4:] == pytest.approx(slow)
    assert slow != pytest.approx(changes[4:])  # what was drawn before
    assert (seen.threshold, seen.clip) == (1e-30, (3, 11))


def test_a_run_with_a_switch_has_all_panels(tmp_path: Path) -> None:
    train(small_config(tmp_path), tmp_path / "run")
    words = words_of(tmp_path / "run")
    for said in (
        "loss (mean)", "training batches", "held-out, pruned twin",
        "accuracy (share correct)", "switch after 12 (t_max)", "mean of 5 steps",
        "threshold 1e-30", "t_min 3 to t_max 11", "coordinate and step",
        "flips in one step (%)", "step",
    ):  # fmt: skip
        assert said in words
    assert words.count("switch after") == 1
    for panel in ("axes_1", "axes_2", "axes_3", "axes_4"):
        assert f'id="{panel}"' in (tmp_path / "run" / "curves.svg").read_text()


@pytest.mark.parametrize(
    ("overrides", "there", "missing"),
    [
        (["sparsity.recipe=dense"], "mean of 5", ["switch", "t_min", "flips", "twin"]),
        (["sparsity.recipe=ste"], "flips in one", ["switch", "t_min", "twin"]),
        (
            ["sparsity.recipe=sr-ste", "train.optimizer=sgd"],
            "flips in one",
            ["mean of", "threshold", "switch"],
        ),
        (
            ["switch.criterion=staleness", "switch.eps=1.0"],
            "staleness of v",
            ["of one"],
        ),
        (["switch.criterion=relative-norm"], "relative-norm", ["of one step"]),
        (["switch.criterion=autoswitch-relative"], "|change of v| / v", []),
        (
            ["switch.criterion=fixed", "switch.step=4"],
            "switch after 4 (fixed)",
            ["t_min"],
        ),
    ],
)
def test_a_run_draws_what_it_has(
    tmp_path: Path, overrides: list[str], there: str, missing: list[str]
) -> None:
    train(small_config(tmp_path, *overrides), tmp_path / "run")
    words = words_of(tmp_path / "run")
    assert there in words
    assert not [word for word in missing if word in words]


def test_the_same_run_draws_the_same_bytes(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    for name in ("one", "two"):
        train(config, tmp_path / name)
    one, two = (tmp_path / name / "curves.svg" for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    assert "dc:date" not in one.read_text()
    draw_curves(tmp_path / "three.svg", history_of(tmp_path / "one", config))
    assert (tmp_path / "three.svg").read_bytes() == one.read_bytes()


def test_a_long_run_is_downsampled_and_keeps_its_last_step(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    train(config, tmp_path / "run")
    log = tmp_path / "run" / "variance.jsonl"
    header, first = log.read_text().splitlines()[:2]
    sample = json.loads(first)
    count = 2 * POINTS + 7
    lines = (json.dumps({**sample, "step": step}) for step in range(1, count + 1))
    log.write_text("\n".join([header, *lines]) + "\n")
    seen = history_of(tmp_path / "run", config).criterion
    assert seen is not None
    assert len(seen.value.steps) <= POINTS + 1 and seen.value.steps[-1] == count
    thin = Curve(list(range(count)), [0.0] * count).downsampled()
    assert len(thin.steps) <= POINTS and thin.steps[-1] == count - 1
