"""report.html tells the run, needs nothing else, and shows what is wrong."""

import getpass
import platform
import re
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from page_reader import Page
from safetensors.numpy import load_file, save_file
from small_run import CONFIG, small_config
from stopped_run import stopping_at

from step_cli.config.train import TrainConfig
from step_cli.errors import MissingError, OutputError, StoppedError
from step_cli.training import page as page_module
from step_cli.training import results
from step_cli.training import run as run_module
from step_cli.training.records import PlannedLayer
from step_cli.training.run import train

pytestmark = pytest.mark.draws


def page_of(run_dir: Path) -> Page:
    return Page((run_dir / "report.html").read_text(encoding="utf-8"))


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return small_config(tmp_path, "train.lr=0.02")


def test_a_finished_run_is_told_whole(config: TrainConfig, tmp_path: Path) -> None:
    report = train(config, tmp_path / "run")
    page = page_of(tmp_path / "run")
    assert page.by_tag["h1"] == "run"
    assert "finished 24 steps" in page.by_tag["p"]
    assert page.facts["recipe"] == "step" and page.facts["pattern"] == "2:4"
    assert page.facts["density"] == "0.5000"
    told = r"after step 12: t_max reached \(autoswitch [0-9.e-]+, threshold 1e-30\)"
    assert re.fullmatch(told, page.facts["switch"])
    assert report.dense_metrics is not None
    assert page.rows[0] == ["metric", "the model", "its dense weights"]
    assert page.rows[1:3] == [
        [key, f"{report.metrics[name]:.4f}", f"{report.dense_metrics[name]:.4f}"]
        for key, name in (("loss", "eval_loss"), ("accuracy", "eval_accuracy"))
    ]
    first, second = page.rows[4:]
    assert first[:6] == ["1.weight", "16 × 64", "2:4", "1", "0.5000", "0"]  # noqa: RUF001
    assert second[:6] == ["3.weight", "12 × 16", "2:4", "1", "0.5000", "0"]  # noqa: RUF001
    assert first[6].endswith(" %")
    assert page.tags.count("polyline") == 2
    assert 'recipe = "step"' in page.by_tag["pre"]
    assert page.facts["device"] and page.facts["torch"]


def test_it_needs_no_other_place_and_tells_of_none(
    config: TrainConfig, tmp_path: Path
) -> None:
    train(config, tmp_path / "run")
    page = page_of(tmp_path / "run")
    assert page.links == []
    configured = page.by_tag.pop("pre")
    page.facts.pop("model")  # of the configuration
    said = " ".join([*page.by_tag.values()])
    assert str(tmp_path) in configured
    for private in (platform.node(), str(tmp_path.parent), str(Path.home())):
        assert len(private) < 3 or private not in said.replace(config.model.source, "")
    assert getpass.getuser() not in page.facts.values()


def test_a_weight_that_breaks_its_pattern_is_shown(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = results.save_model

    def damaged(directory: Path, *rest: Any, **more: Any) -> None:
        real(directory, *rest, **more)
        arrays = load_file(directory / "model.safetensors")
        arrays["1.weight"][3, :4] = np.float32(1)
        save_file(arrays, directory / "model.safetensors")

    monkeypatch.setattr(results, "save_model", damaged)
    train(config, tmp_path / "run")
    first, second = page_of(tmp_path / "run").rows[4:]
    assert first[4:6] == ["0.5020", "1"] and second[5] == "0"


def test_a_stopped_run_is_told_as_far_as_it_came(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(run_module.Trainer, "run", stopping_at(9, signal.SIGTERM))
        with pytest.raises(StoppedError):
            train(config, tmp_path / "run")
    page = page_of(tmp_path / "run")
    assert "stopped after step 9 of 24" in page.by_tag["p"]
    assert page.facts["switch"] == "not yet"
    assert page.rows[0] == ["metric", "the model", "its pruned twin"]
    assert page.rows[4][4:8] == ["1.0000", "–", "–", "–"]  # noqa: RUF001
    assert (tmp_path / "run" / "curves.svg").is_file()
    train(config, tmp_path / "run", resume=True)
    assert page_of(tmp_path / "run").rows[4][4:6] == ["0.5000", "0"]


def test_a_stop_counts_more_than_its_picture(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    def full(*arguments: object) -> None:
        raise OutputError("no space left on device")

    monkeypatch.setattr(results, "show_run", full)
    with monkeypatch.context() as patch:
        patch.setattr(run_module.Trainer, "run", stopping_at(9, signal.SIGTERM))
        with pytest.raises(StoppedError):
            train(config, tmp_path / "run")
    assert "no curves and no report: no space left on device" in caplog.messages


@pytest.mark.parametrize(
    ("overrides", "state", "density"),
    [
        (["sparsity.recipe=dense"], "finished 24 steps", "1.0000"),
        (["switch.t_max=1.0"], "the switch never came", "1.0000"),
        (["sparsity.recipe=ste"], "finished 24 steps", "0.5000"),
    ],
)
def test_every_end_has_its_page(
    tmp_path: Path, overrides: list[str], state: str, density: str
) -> None:
    train(small_config(tmp_path, *overrides), tmp_path / "run")
    page = page_of(tmp_path / "run")
    assert state in page.by_tag["p"]
    assert page.rows[4][4] == density
    assert page.rows[4][5] == ("0" if density == "0.5000" else "–")  # noqa: RUF001


def test_a_window_that_was_not_full_is_told(tmp_path: Path) -> None:
    train(small_config(tmp_path, "switch.window=20"), tmp_path / "run")
    told = (
        "after step 12: t_max reached (autoswitch: its window of 20 steps was not full)"
    )
    assert page_of(tmp_path / "run").facts["switch"] == told


def test_names_are_data(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "<script>alert(1)</script>&"
    real, bad = page_module.read_layers, '<img src=x onerror="x">\u202e\n{{ 1 }}'

    def renamed(path: Path) -> Any:
        history = real(path)
        history.layers[0] = PlannedLayer(bad, [16, 64], "2:4", 1)
        return history

    monkeypatch.setattr(page_module, "read_layers", renamed)
    train(config, run_dir.with_name("run"))
    run_dir.with_name("run").rename(tmp_path / "<b>")
    page = page_of(tmp_path / "<b>")
    assert page.rows[4][0] == '<img src=x onerror="x">\\u202e\\n{{ 1 }}'
    assert page.rows[4][4] == "–"  # noqa: RUF001 - no such weight was written


def test_the_name_of_the_run_is_data(config: TrainConfig, tmp_path: Path) -> None:
    train(config, tmp_path / "<b>&amp;")
    assert page_of(tmp_path / "<b>&amp;").by_tag["h1"] == "<b>&amp;"


@pytest.mark.parametrize("name", ["matplotlib", "jinja2"])
def test_a_missing_library_is_told_at_the_start(
    config: TrainConfig, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import importlib.util

    real = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda asked: None if asked == name else real(asked),
    )
    with pytest.raises(MissingError, match=rf"needs {name}: .*step-cli\[train"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_same_run_has_the_same_page(config: TrainConfig, tmp_path: Path) -> None:
    train(config, tmp_path / "a" / "run")
    train(config, tmp_path / "b" / "run")
    one, two = (tmp_path / name / "run" / "report.html" for name in "ab")
    assert one.read_bytes() == two.read_bytes()
    assert CONFIG.name not in one.read_text()
