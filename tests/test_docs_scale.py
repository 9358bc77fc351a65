"""docs/scale.md: its tables are made, and what makes them is right."""

import runpy
from pathlib import Path

import pytest
import torch
from torch import nn

from step_cli.optim.optimizer import SparseOptimizer
from step_cli.recipes.sparse_adamw import sparse_adamw

DOCS = Path(__file__).parents[1] / "docs"
TABLES = runpy.run_path(str(DOCS / "scale_tables.py"))
# As the models' own cards and configurations have them.
PUBLISHED = {
    "GPT-2, 125M": 124_439_808,
    "GPT-2 medium, 355M": 354_823_168,
    "GPT-2 XL, 1.5B": 1_557_611_200,
    "LLaMA-2 7B": 6_738_415_616,
    "LLaMA-2 13B": 13_015_864_320,
    "LLaMA-2 70B": 68_976_648_192,
}


def test_the_page_has_the_tables_that_are_made() -> None:
    page = (DOCS / "scale.md").read_text("utf-8")
    assert "| LLaMA-2 70B |" in page
    assert page == TABLES["with_tables"](page), "out of date: run `make docs`"


def test_the_models_have_as_many_parameters_as_published() -> None:
    assert {m.name: m.parameters for m in TABLES["MODELS"]} == PUBLISHED
    # Linear layers of GPT-2: Table 5 of the STEP paper counts the same.
    assert TABLES["MODELS"][0].sparse == 84_934_656


def held(model: nn.Module, optimizer: SparseOptimizer) -> int:
    """Bytes of all tensors that lie in memory of their own, but counts of steps."""
    states = [value for state in optimizer.state.values() for value in state.values()]
    tensors = [*model.parameters(), *(p.grad for p in model.parameters()), *states]
    found = [t for t in tensors if isinstance(t, torch.Tensor) and t.dim()]
    return sum({t.data_ptr(): t.nbytes for t in found}.values())


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("switched", [False, True])
def test_the_optimizer_holds_as_many_bytes(dtype: str, switched: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 64), nn.LayerNorm(64), nn.Linear(64, 16))
    model.to(torch.float32 if dtype == "fp32" else torch.bfloat16)
    optimizer = sparse_adamw(model, switch=2, total_steps=10)
    for step in range(4 if switched else 1):
        optimizer.zero_grad()
        inputs = torch.randn(8, 32, generator=torch.Generator().manual_seed(step))
        model(inputs.to(model[0].weight.dtype)).float().square().mean().backward()
        optimizer.step()
    assert (optimizer.switch_step is not None) is switched
    parameters = sum(p.numel() for p in model.parameters())
    sparse = sum(p.numel() for p, _ in optimizer.sparse_parameters())
    expected = TABLES["state_bytes"](parameters, sparse, dtype, switched=switched)
    assert held(model, optimizer) == expected
    assert sparse == 32 * 64 + 64 * 16
