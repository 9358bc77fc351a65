"""The callback for Lightning, where Lightning is not installed: with a stand-in for it.

`test_lightning.py` tests it with Lightning itself.
"""

import importlib
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from integration.slow_training import Net, loss_of

from step_cli.formats.plan import read_plan
from step_cli.recipes.sparse_adamw import sparse_adamw

NAME = "step_cli.integrations.lightning"
SWITCH = 3


def stand_in(name: str, *, inner: str | None = None) -> dict[str, Any]:
    """A package whose module ``inner``, or which itself, has the base class."""
    modules: dict[str, Any] = {name: types.ModuleType(name)}
    if inner is not None:
        modules[f"{name}.{inner}"] = types.ModuleType(f"{name}.{inner}")
    home = [*modules.values()][-1]
    home.Callback = type("Callback", (), {"package": name})
    return modules


@pytest.fixture
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The module is imported anew, and forgotten after the test."""
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning", NAME):
        monkeypatch.setitem(sys.modules, name, None)
        del sys.modules[name]
    yield monkeypatch


def callback(patch: pytest.MonkeyPatch, modules: dict[str, Any]) -> Any:
    for name, module in modules.items():
        patch.setitem(sys.modules, name, module)
    return importlib.import_module(NAME).LightningCallback()


class Trainer:
    """What the callback uses of Lightning's, around a loop of one's own."""

    def __init__(self, model: Any) -> None:
        self.lightning_module = model
        self.optimizers = [sparse_adamw(model, switch=SWITCH, lr=1e-2)]
        self.loggers = [self]
        self.log_every_n_steps, self.global_step, self.is_global_zero = 2, 0, True
        self.at: dict[int, dict[str, float]] = {}

    def log_metrics(self, values: dict[str, float], step: int) -> None:
        self.at.setdefault(step + 1, {}).update(values)

    def log_dict(self, values: dict[str, float]) -> None:
        self.log_metrics(values, self.global_step - 1)

    def save_checkpoint(self, path: Path, weights_only: bool = False) -> None:
        torch.save({"state_dict": self.lightning_module.state_dict()}, path)

    def train(self, callback: Any, folder: Path, *, removes: bool = False) -> None:
        (optimizer,) = self.optimizers
        callback.setup(self, self, "fit")
        callback.setup(self, self, "fit")  # as for a second fit
        for step in range(1, 7):
            loss_of(self.lightning_module, step).backward()
            callback.on_before_optimizer_step(self, self, optimizer)
            optimizer.step()
            optimizer.zero_grad()
            self.global_step = step
            callback.on_train_batch_end(self, self, None, None, step)
            self.save_checkpoint(folder / f"{step}.ckpt", weights_only=True)
            if removes and step > 1:
                (folder / f"{step - 1}.ckpt").unlink()
        callback.on_fit_end(self, self)


@pytest.mark.parametrize(
    ("name", "inner"), [("lightning", "pytorch"), ("pytorch_lightning", None)]
)
def test_it_logs_and_writes_plans(
    name: str, inner: str | None, fresh: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = callback(fresh, stand_in(name, inner=inner))
    assert made.package == name
    trainer = Trainer(Net())
    trainer.train(made, tmp_path)
    assert sorted(trainer.at) == [2, 3, 4, 6]
    assert trainer.at[2] == {"switch/switched": 0.0}
    assert trainer.at[3] == {"switch/step": SWITCH}
    for step in (4, 6):
        told = trainer.at[step]
        assert told["switch/switched"] == 1.0
        assert 0 <= told["sparsity/flip_rate"] <= 1 and told["sparsity/variance_ratio"]
    plans = {path.name.partition(".")[0] for path in tmp_path.glob("*.nm_plan.json")}
    assert plans == {"3", "4", "5", "6"}  # pruned from the switch on
    assert read_plan(tmp_path / "6.ckpt.nm_plan.json").keys() == {
        name for name, p in Net().named_parameters() if p.dim() > 1
    }


def test_the_plan_of_a_removed_file_goes_too(
    fresh: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = callback(fresh, stand_in("lightning", inner="pytorch"))
    Trainer(Net()).train(made, tmp_path, removes=True)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["6.ckpt", "6.ckpt.nm_plan.json"]


def test_only_the_first_process_writes_plans(
    fresh: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    made = callback(fresh, stand_in("lightning", inner="pytorch"))
    trainer = Trainer(Net())
    trainer.is_global_zero = False
    trainer.train(made, tmp_path)
    assert not list(tmp_path.glob("*.nm_plan.json"))


def test_a_file_elsewhere_gets_a_warning_and_no_plan(
    fresh: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    made = callback(fresh, stand_in("lightning", inner="pytorch"))
    trainer = Trainer(Net())
    trainer.train(made, tmp_path)
    fresh.setattr(torch, "save", lambda *_: None)
    trainer.save_checkpoint("store://bucket/7.ckpt")  # type: ignore[arg-type]
    assert "store://bucket/7.ckpt: no plan is written" in caplog.text


def test_without_lightning_the_callback_says_what_is_missing(
    fresh: pytest.MonkeyPatch,
) -> None:
    for name in ("lightning", "lightning.pytorch", "pytorch_lightning"):
        fresh.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match="lightning"):
        importlib.import_module(NAME)
