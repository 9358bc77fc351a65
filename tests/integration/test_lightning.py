"""Lightning's Trainer against a plain loop, where Lightning is installed."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from integration.slow_training import Net, loss_of
from torch.optim import Optimizer, lr_scheduler

import step_cli
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
