"""TensorBoard's event files hold what metrics.jsonl holds, and mark the switch."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from small_run import small_config
from stopped_run import stopping_at

from step_cli.errors import StoppedError
from step_cli.training import run as run_module
from step_cli.training.callbacks import tag_of
from step_cli.training.run import train
from step_cli.training.trackers import tracking

pytest.importorskip("tensorboard")

KEYS = (
    "loss", "lr", "variance_change", "flip_rate", "pruned_update_share", "eval_loss",
    "eval_accuracy", "pruned_eval_loss", "pruned_eval_accuracy",
)  # fmt: skip


def events(run_dir: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    accumulator = EventAccumulator(str(run_dir / "tensorboard"))
    return accumulator.Reload()


def points(found: Any, tag: str) -> list[tuple[int, float]]:
    return [(event.step, event.value) for event in found.Scalars(tag)]


def same_as_metrics(run_dir: Path) -> None:
    found = events(run_dir)
    lines = (run_dir / "metrics.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    for key in KEYS:
        recorded = [(r["step"], r[key]) for r in records if r.get(key) is not None]
        assert recorded, key
        steps, values = zip(*recorded, strict=True)
        written = points(found, tag_of(key))
        assert [step for step, _ in written] == list(steps), key
        assert [value for _, value in written] == pytest.approx(values), key


def test_the_events_are_those_of_metrics_and_mark_the_switch(tmp_path: Path) -> None:
    train(small_config(tmp_path), tmp_path / "run")
    same_as_metrics(tmp_path / "run")
    found = events(tmp_path / "run")
    (mark,) = found.Tensors("switch/text_summary")
    assert mark.step == 12
    assert mark.tensor_proto.string_val[0] == b"after step 12: t_max"
    switched = points(found, "switch/switched")
    assert [step for step, value in switched if not value] == [1, 2, 4, 6, 8, 10]
    assert {step for step, _ in points(found, "switch/autoswitch")} == {6, 8, 10}
    thresholds = [value for _, value in points(found, "switch/threshold")]
    assert thresholds == pytest.approx([1e-30] * 3)


@pytest.mark.parametrize("step", [10, 20])  # before and after the switch
def test_a_resumed_run_goes_on_with_the_same_events(
    tmp_path: Path, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(run_module.Trainer, "run", stopping_at(step, signal.SIGTERM))
        with pytest.raises(StoppedError):
            train(config, tmp_path / "run")
    same = tmp_path / "run" / "checkpoints" / f"step-{step:08}" / "state.json"
    same.unlink()  # it goes on from an older one, and some steps are taken again
    train(config, tmp_path / "run", resume=True)
    same_as_metrics(tmp_path / "run")
    assert len(events(tmp_path / "run").Tensors("switch/text_summary")) == 1


def test_without_tensorboard_a_run_leaves_no_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tracking, "tensorboard_is_installed", lambda: False)
    assert train(small_config(tmp_path), tmp_path / "run").ok
    assert not (tmp_path / "run" / "tensorboard").exists()


def test_events_that_cannot_be_written_are_said_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from torch.utils.tensorboard import SummaryWriter

    real = SummaryWriter.add_scalar

    def full(self: Any, tag: str, value: float, step: int) -> None:
        if step >= 8:
            raise OSError(28, "No space left on device")
        real(self, tag, value, step)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(SummaryWriter, "add_scalar", full)
    assert train(small_config(tmp_path), tmp_path / "run").ok
    said = [r.getMessage() for r in caplog.records if r.levelname.lower() == "warning"]
    assert said == ["no more TensorBoard events: no space left on device"]
