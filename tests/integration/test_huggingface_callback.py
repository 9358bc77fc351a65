"""The callback for Hugging Face's Trainer: what it logs, and the plans it writes."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from integration.training import different

import step_cli
from step_cli.errors import UsageError

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")

from integration import test_trainers as plain  # noqa: E402

SWITCH = 3
MEASURED = {"sparsity/flip_rate", "sparsity/pruned_update_share"}


class Kept(transformers.TrainerCallback):  # type: ignore[misc, name-defined]
    """A tracker of ``report_to`` sees what this sees."""

    def __init__(self) -> None:
        self.logs: list[dict[str, Any]] = []

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        self.logs.append({**more["logs"], "step": state.global_step})


def trained(folder: Path, *, optimizer: Any = None, **arguments: Any) -> Any:
    """A Trainer that has trained with the callback, its tracker, and the model."""
    model = plain.gpt2()
    own = optimizer or plain.optimizer_of(model, SWITCH)
    trainer = plain.trainer_of(model, own, folder)
    for name, value in arguments.items():
        setattr(trainer.args, name, value)
    kept = Kept()
    trainer.add_callback(kept)
    trainer.add_callback(step_cli.HuggingFaceCallback(trainer))
    trainer.train()
    return trainer, kept


def at(entries: list[dict[str, Any]], step: int) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for entry in entries:
        merged |= entry if entry["step"] == step else {}
    return merged


def test_logged_steps_tell_phase_switch_and_flips(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="step_cli")
    trainer, kept = trained(tmp_path, logging_steps=2)
    for entries in (kept.logs, trainer.state.log_history):
        assert {e["step"] for e in entries} == {2, 3, 4, 6}
        assert at(entries, 2)["switch/switched"] == 0.0
        assert not MEASURED & at(entries, 2).keys()  # there are no masks yet
        assert at(entries, 3)["switch/step"] == SWITCH
        assert "loss" in at(entries, 2) and "loss" not in at(entries, 3)
        for step in (4, 6):
            assert at(entries, step).keys() >= {*MEASURED, "loss"}
            assert 0 <= at(entries, step)["sparsity/flip_rate"] < 0.5
            assert at(entries, step)["sparsity/variance_ratio"] > 0
            assert at(entries, step)["switch/switched"] == 1.0
    history = trainer.state.log_history
    assert at(history, 2)["phase"] == "precondition"
    assert at(history, 3)["phase"] == at(history, 6)["phase"] == "mask-learning"
    said = [r.getMessage() for r in caplog.records if r.name.startswith("step_cli.int")]
    assert said == ["step 3: switched to mask-learning (fixed)"]
    state = json.loads((tmp_path / "checkpoint-6" / "trainer_state.json").read_text())
    assert at(state["log_history"], 4)["phase"] == "mask-learning"


def test_training_is_what_it_is_without_the_callback(tmp_path: Path) -> None:
    trainer, _ = trained(tmp_path, logging_steps=1)
    own = step_cli.integrations.huggingface.sparse_optimizer(trainer.optimizer)
    assert not own.watch_masks
    reference = plain.by_hand(SWITCH, as_trainer=True)
    assert not list(different(plain.outcome(trainer.model, own), reference))


def test_each_saved_model_that_is_pruned_has_its_plan(tmp_path: Path) -> None:
    trainer, _ = trained(tmp_path, save_steps=2)
    assert not (tmp_path / "checkpoint-2" / "nm_plan.json").exists()  # it is dense
    trainer.save_model(str(tmp_path / "final"))
    for folder in (tmp_path / "checkpoint-4", tmp_path / "final"):
        report = step_cli.verify(folder)
        assert report.ok and report.exit_code == 0
        assert len(json.loads((folder / "nm_plan.json").read_text())["layers"]) == 4
    # Both ways: a plan is a promise, and the dense model does not keep it.
    plan = (tmp_path / "final" / "nm_plan.json").read_text()
    dense = {**json.loads(plan), "files": {}}
    (tmp_path / "checkpoint-2" / "nm_plan.json").write_text(json.dumps(dense))
    assert step_cli.verify(tmp_path / "checkpoint-2").exit_code == 1


def test_epochs_are_logged_with_the_flips_of_their_last_step(tmp_path: Path) -> None:
    epoch = transformers.trainer_utils.IntervalStrategy.EPOCH
    _, kept = trained(tmp_path, logging_strategy=epoch, save_strategy="no")
    assert at(kept.logs, 6).keys() >= {*MEASURED, "loss"}
    assert not MEASURED & at(kept.logs, 4).keys()


def test_weights_that_are_saved_in_pieces_get_no_plan_but_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "step_cli.integrations.huggingface.stored_plan"
    monkeypatch.setattr(name, lambda *_: None)
    trained(tmp_path, save_steps=6)
    assert not (tmp_path / "checkpoint-6" / "nm_plan.json").exists()
    assert "no plan is written" in caplog.text and "--nm" in caplog.text


def test_another_optimizer_is_refused_in_one_line(tmp_path: Path) -> None:
    import torch

    adamw = torch.optim.AdamW(plain.gpt2().parameters())
    with pytest.raises(UsageError, match="prunes nothing: give the optimizer that"):
        trained(tmp_path, optimizer=adamw)
