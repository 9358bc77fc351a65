"""What the snippets of docs/python.md take for granted, and how they are run."""

import types
from pathlib import Path
from typing import Any

import torch
from integration.training import batches, build_model, loss_of
from safetensors.torch import save_file
from torch import nn


def run(code: str, names: dict[str, Any]) -> None:
    exec(compile(code, "docs/python.md", "exec"), names)


def run_on_rank(code: str, folder: Path) -> None:
    names = plain(folder) | {"folder": folder, "conv1d": nn.Linear(16, 12, bias=False)}
    run(code, names)
    model, optimizer = names["model"], names["optimizer"]
    if "conv1d" not in code:
        loss_of(model, names["loader"][0]).backward()
        optimizer.step()
        assert optimizer.steps_taken == 1


def plain(folder: Path) -> dict[str, Any]:
    return {
        "model": build_model(),
        "loader": batches(12),
        "loss": loss_of,
        "pretrained": build_model(seed=1).state_dict(),
        "path": folder / "run.pt",
    }


def classes(folder: Path) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(6, 8, 16, generator=generator)
    labels = torch.randint(0, 5, (6, 8), generator=generator)
    torch.manual_seed(0)
    model, teacher = nn.Linear(16, 5), nn.Linear(16, 5)
    return {
        "model": model,
        "teacher": teacher,
        "loader": [*zip(inputs, labels, strict=True)],
    }


def files(folder: Path) -> dict[str, Any]:
    save_file(build_model().state_dict(), folder / "model.safetensors")
    return {}


def gpt2(folder: Path) -> dict[str, Any]:
    from integration.test_trainers import Texts
    from integration.test_trainers import gpt2 as build

    return {
        "model": build(),
        "texts": Texts(),
        "loader": torch.utils.data.DataLoader(list(Texts()), batch_size=4),
        "output_dir": str(folder),
        "quiet": {"report_to": [], "use_cpu": True, "disable_tqdm": True,
                  "dataloader_pin_memory": False},
        "on_cpu": {"cpu": True},
    }  # fmt: skip


def lightning(folder: Path) -> dict[str, Any]:
    """A stand-in for the library, which is not installed."""

    class LightningModule(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = build_model()

    stand_in: Any = types.ModuleType("lightning")
    stand_in.LightningModule = LightningModule
    stand_in.pytorch = types.ModuleType("lightning.pytorch")
    stand_in.pytorch.Callback = type("Callback", (), {})
    return {"lightning": stand_in}
