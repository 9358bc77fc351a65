"""`prune --refit` beside weights that it prunes and does not fit."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands.prune.small_models import TWO_BLOCKS, built
from torch import Tensor, nn

import step_cli

RECURRENT = (
    """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 8)
        self.lstm = nn.LSTM(8, 8, batch_first=True)
        self.never_called = nn.Linear(8, 8, bias=False)

    def forward(self, x):
        return x + self.lstm(self.up(x) @ self.never_called.weight.t())[0]
"""
    + TWO_BLOCKS
)


def relative(new: Tensor, dense: Tensor) -> float:
    return float((new - dense).norm() / dense.norm())


def test_a_block_is_compared_with_the_dense_one_whatever_is_pruned_in_it(
    tmp_path: Path,
) -> None:
    """Also where a part of the block is pruned before the samples are run."""
    (tmp_path / "net.py").write_text(RECURRENT)
    source, plain, out = (tmp_path / f"{name}.pt" for name in ("in", "plain", "out"))
    torch.save(built(RECURRENT).state_dict(), source)
    x = np.random.default_rng(0).standard_normal((8, 5, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    step_cli.prune(source, plain)
    report = step_cli.prune(
        source, out, refit="block", calibration=tmp_path / "x.npz",
        model=f"{tmp_path / 'net.py'}:build",
    )  # fmt: skip
    dense, pruned, fitted = (built(RECURRENT, path) for path in (source, plain, out))
    entering = torch.from_numpy(x)[:7]  # the eighth is held out
    with torch.no_grad():
        for number, row in enumerate(report.blocks):
            aim = dense.blocks[number](entering)  # type: ignore[union-attr, index, operator]
            before = pruned.blocks[number](entering)  # type: ignore[union-attr, index, operator]
            after = fitted.blocks[number](entering)  # type: ignore[union-attr, index, operator]
            assert row.error_before == pytest.approx(relative(before, aim), rel=1e-3)
            assert row.error_after == pytest.approx(relative(after, aim), rel=1e-3)
            entering = after


def inputs_of(model: nn.Module, name: str, batches: Sequence[Tensor]) -> Tensor:
    found: list[Tensor] = []
    module = model.get_submodule(name)
    handle = module.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    with torch.no_grad():
        for batch in batches:
            model(batch)
    handle.remove()
    return torch.cat([x.flatten(0, -2) for x in found])


@pytest.mark.parametrize("kind", ["layer", "block"])
def test_layers_see_pruned_experts_that_are_stored_one_by_one(
    kind: str, tmp_path: Path, step_cli: Callable[..., Any]
) -> None:
    """transformers multiplies them as a stack, which no tensor of the file is."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=256, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=2, num_local_experts=2,
        max_position_embeddings=16, use_cache=False,
    )  # fmt: skip
    source, out = tmp_path / "in", tmp_path / "out"
    dense = transformers.MixtralForCausalLM(config).eval()
    with torch.no_grad():  # so that experts matter
        for value in dense.parameters():
            value.mul_(8 if value.dim() > 1 else 1)
    dense.save_pretrained(source)
    tokens = np.random.default_rng(0).integers(0, 256, (8, 12))
    np.savez(tmp_path / "x.npz", input_ids=tokens)
    words = ["--calibration", tmp_path / "x.npz", "--exclude", "*gate.weight"]
    done = step_cli("prune", source, out, "--refit", kind, *words, "--json")
    assert done.code == 0, done.err
    rows = {row["name"]: row for row in json.loads(done.out)["layers"]}
    assert any("experts" in name for name in rows)
    new = transformers.MixtralForCausalLM.from_pretrained(out).eval()
    batches = [*torch.from_numpy(tokens)[:7, None]]
    for name in ("model.layers.1.self_attn.q_proj", "lm_head"):
        x = inputs_of(new, name, batches)
        weights = [m.get_submodule(name).weight.detach() for m in (new, dense)]
        fitted, whole = (x @ weight.t() for weight in weights)
        wanted = rows[f"{name}.weight"]["error_after"]
        assert relative(fitted, whole) == pytest.approx(wanted, rel=1e-3)
