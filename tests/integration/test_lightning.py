"""Lightning's Trainer against a plain loop, where Lightning is installed."""

import logging
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from integration.slow_training import Net, loss_of
from torch.optim import Optimizer, lr_scheduler

import step_cli
from step_cli.formats.plan import read_plan
from step_cli.recipes.sparse_adamw import sparse_adamw

lightning = pytest.importorskip("lightning")
pytestmark = pytest.mark.filterwarnings("ignore")

STEPS, SWITCH = 8, 3


class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.net, self.kind = Net(), kind

    def training_step(self, batch: torch.Tensor, _: int) -> torch.Tensor:
        return loss_of(self.net, int(batch))

    def train_dataloader(self) -> Any:
        return torch.utils.data.DataLoader(range(STEPS), batch_size=None)

    def configure_optimizers(self) -> Any:
        optimizer = optimizer_of(self, self.kind)
        schedule = {"scheduler": rates(optimizer), "interval": "step"}
        return {"optimizer": optimizer, "lr_scheduler": schedule}


def optimizer_of(model: Any, kind: str) -> Optimizer:
    if kind == "adamw":
        return torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    switch = SWITCH if kind == "sparse" else 100
    return sparse_adamw(model, switch=switch, lr=1e-2, weight_decay=0.1)


def rates(optimizer: Optimizer) -> Any:
    return lr_scheduler.LambdaLR(optimizer, lambda t: 1 / (1 + t))


def fitted(kind: str, folder: Path, epochs: int = 1, **more: Any) -> Module:
    module = Module(kind)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=epochs, gradient_clip_val=0.01, logger=False,
        gradient_clip_algorithm="value",
        enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, **more)
    trainer.save_checkpoint(folder / f"{epochs}.ckpt")
    return module


def by_hand(kind: str, epochs: int = 1) -> Net:
    net = Net()
    optimizer = optimizer_of(net, kind)
    schedule = rates(optimizer)
    for t in range(STEPS * epochs):
        optimizer.zero_grad()
        loss_of(net, t % STEPS).backward()
        torch.nn.utils.clip_grad_value_(net.parameters(), 0.01)
        optimizer.step()
        schedule.step()
    return net


@pytest.mark.parametrize("kind", ["adamw", "dense", "sparse"])
def test_it_trains_as_a_plain_loop(kind: str, tmp_path: Path) -> None:
    plain = by_hand("adamw" if kind == "dense" else kind)
    module = fitted(kind, tmp_path)
    for p, q in zip(module.net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)
    if kind == "sparse":
        step_cli.require_sparse(module, module.optimizers())
        assert math.isfinite(float(loss_of(module.net, 0)))


def test_a_backbone_is_unfrozen(tmp_path: Path) -> None:
    module = Module("sparse")
    module.backbone = module.net.a
    late = lightning.pytorch.callbacks.BackboneFinetuning(1, lambda epoch: 1.0)
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=3, logger=False, callbacks=[late],
        enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=tmp_path,
    )  # fmt: skip
    before = module.net.a.weight.detach().clone()
    trainer.fit(module)
    kept = module.net.a.weight.detach() != 0
    assert not torch.equal(module.net.a.weight[kept], before[kept])
    step_cli.require_sparse(module, module.optimizers())


def test_it_resumes_as_a_plain_loop(tmp_path: Path) -> None:
    fitted("sparse", tmp_path)
    module = fitted("sparse", tmp_path, 2, ckpt_path=tmp_path / "1.ckpt")
    plain = by_hand("sparse", 2)
    for p, q in zip(module.net.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)


# ---------------------------------------------------------------------- the callback


class Kept(lightning.pytorch.loggers.Logger):  # type: ignore[misc, name-defined]
    """A logger that keeps what it is given."""

    name, version = "kept", "0"

    def __init__(self) -> None:
        super().__init__()
        self.at: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.at.setdefault(step + 1, {}).update(metrics)  # as steps are counted here

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass


def watched(folder: Path, *, accumulate: int = 1, **checkpoint: Any) -> Any:
    """Train with the callback, saving every two steps; module, logger, trainer."""
    module, kept = Module("sparse"), Kept()
    saving = lightning.pytorch.callbacks.ModelCheckpoint(
        folder, "{step}", every_n_train_steps=2, **checkpoint
    )
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=accumulate, logger=kept, log_every_n_steps=2,
        callbacks=[step_cli.LightningCallback(), saving],
        accumulate_grad_batches=accumulate, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module)
    return module, kept, trainer


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_callback_logs_phase_switch_and_flips(
    accumulate: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="step_cli")
    module, kept, trainer = watched(tmp_path, accumulate=accumulate)
    assert kept.at[2]["switch/switched"] == 0.0
    assert "sparsity/flip_rate" not in kept.at[2]
    assert [s for s in kept.at if "switch/step" in kept.at[s]] == [SWITCH]
    assert kept.at[SWITCH]["switch/step"] == SWITCH
    for step in (4, 6, 8):
        assert 0 <= kept.at[step]["sparsity/flip_rate"] < 0.5
        assert kept.at[step]["sparsity/variance_ratio"] > 0
        assert kept.at[step]["switch/switched"] == 1.0
    assert trainer.callback_metrics["switch/switched"] == 1.0
    said = [r.getMessage() for r in caplog.records if r.name.startswith("step_cli.int")]
    assert said == ["step 3: switched to mask-learning (fixed)"]
    assert not module.optimizers().watch_masks


def test_the_callback_writes_a_plan_beside_each_file_of_a_pruned_model(
    tmp_path: Path,
) -> None:
    module, _, trainer = watched(tmp_path, save_top_k=2, monitor="step", mode="max")
    files = sorted(path.name for path in tmp_path.glob("*.ckpt"))
    assert files == ["step=6.ckpt", "step=8.ckpt"]  # older ones were removed
    plans = sorted(path.name for path in tmp_path.glob("*.nm_plan.json"))
    assert plans == [f"{name}.nm_plan.json" for name in files]
    plan = read_plan(tmp_path / plans[0])
    chosen = {n for n, p in module.named_parameters() if n in plan and p.dim() > 1}
    assert plan and chosen == plan.keys()
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert step_cli.verify(tmp_path / "last.ckpt", key="state_dict").ok


def test_a_checkpoint_before_the_switch_has_no_plan(tmp_path: Path) -> None:
    watched(tmp_path, save_top_k=-1)
    assert (tmp_path / "step=2.ckpt").exists()
    assert not (tmp_path / "step=2.ckpt.nm_plan.json").exists()
    plan = (tmp_path / "step=4.ckpt.nm_plan.json").read_text()
    (tmp_path / "step=2.ckpt.nm_plan.json").write_text(plan)  # which it does not hold
    assert step_cli.verify(tmp_path / "step=2.ckpt", key="state_dict").exit_code == 1


def test_another_optimizer_is_left_alone(tmp_path: Path) -> None:
    module, kept = Module("adamw"), Kept()
    trainer = lightning.Trainer(
        accelerator="cpu", max_epochs=1, logger=kept, log_every_n_steps=2,
        callbacks=[step_cli.LightningCallback()], enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        default_root_dir=tmp_path,
    )  # fmt: skip
    trainer.fit(module)
    trainer.save_checkpoint(tmp_path / "dense.ckpt")
    assert [path.name for path in tmp_path.iterdir()] == ["dense.ckpt"]
    assert not any(key.startswith("s") for values in kept.at.values() for key in values)
