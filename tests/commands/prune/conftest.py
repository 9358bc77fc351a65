"""What several tests of `prune` use."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands.prune.small_models import NET, built


@pytest.fixture
def resnet(tmp_path: Path) -> tuple[Path, dict[str, Any]]:
    """A residual network with batch norms that have seen its data, and options."""
    code = tmp_path / "net.py"
    code.write_text(NET)
    model = built(NET)
    x = np.random.default_rng(0).standard_normal((48, 4, 5, 5)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    model.train()
    for part in torch.from_numpy(x).split(16):
        model(part)
    torch.save(model.state_dict(), tmp_path / "in.pt")
    options = {"calibration": tmp_path / "x.npz", "model": f"{code}:build"}
    return tmp_path / "in.pt", options


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    words = "the quick brown fox jumps over a lazy dog; pack my box with jugs\n"
    path.write_text(words * 30)
    return path


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.GPT2Config(
        vocab_size=256, n_positions=16, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"
