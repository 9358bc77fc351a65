"""Models from code, with samples and a checkpoint, for `prune`."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from step_cli.commands.prune import run as prune
from step_cli.config.commands import PruneConfig
from step_cli.reports import PruneReport


def run(source: Path, out: Path, **options: object) -> PruneReport:
    return prune.run(PruneConfig(checkpoint=source, out=out, **options))  # type: ignore[arg-type]


NET = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(8)

    def forward(self, x):
        return x + self.norm2(self.conv2(self.norm1(self.conv1(x)).relu()))

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.blocks = nn.Sequential(Block(), Block())
        self.drop = nn.Dropout(0.9)
        self.head = nn.Linear(8, 4)
        self.idle = nn.BatchNorm1d(4)

    def forward(self, x):
        x = self.blocks(self.norm(self.stem(x)).relu())
        return self.head(self.drop(x.mean((2, 3))))

def build():
    torch.manual_seed(0)
    return Net()
"""


TWO_BLOCKS = """

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x

def build():
    torch.manual_seed(0)
    return Net()
"""

EXPERTS = (
    """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        new = x.clone()
        for number, expert in enumerate(self.experts):
            here = x[:, 0].long() == number
            if here.any():
                new[here] = expert(x[here])
        return torch.cat([x[:, :1], new[:, 1:]], 1)
"""
    + TWO_BLOCKS
)


def built(source: str, path: Path | None = None) -> nn.Module:
    space: dict[str, Any] = {}
    exec(source, space)
    model: nn.Module = space["build"]()
    if path is not None:
        model.load_state_dict(torch.load(path))
    return model.eval()


def saved(source: str, x: np.ndarray[Any, Any], path: Path) -> dict[str, Any]:
    """Write a model and samples to a directory; options."""
    (path / "net.py").write_text(source)
    torch.save(built(source).state_dict(), path / "in.pt")
    np.savez(path / "x.npz", x=x.astype(np.float32))
    return {"calibration": path / "x.npz", "model": f"{path / 'net.py'}:build"}
