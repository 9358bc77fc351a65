"""A small model of the user's, and `export` of it as the tests call it."""

from pathlib import Path
from typing import Any

from step_cli.commands import export
from step_cli.config import ExportConfig
from step_cli.core.pattern import NMPattern
from step_cli.core.plan import LayerPlan, Plan
from step_cli.reports import ExportReport

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(16, 32)
        self.head = torch.nn.Linear(32, 8)

    def forward(self, x):
        return self.head(torch.relu(self.up(x)))

def build():
    torch.manual_seed(0)
    return Net()
"""
PLAN: Plan = {
    "up.weight": LayerPlan(NMPattern(2, 4), 1),
    "head.weight": LayerPlan(NMPattern(2, 4), 1),
}
INPUT = ["x:float32:2x4x16"]


def run(net: Path, out: Path, to: str = "onnx", **options: Any) -> ExportReport:
    given = {
        "checkpoint": net / "m.safetensors",
        "model": f"{net / 'net.py'}:build",
        "input": INPUT,
    } | options
    return export.run(
        ExportConfig(out=out, to=to, **{k: v for k, v in given.items() if v})
    )


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())
