"""`prune --refit block`: what ends it, what it leaves, what it warns of."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands.prune.small_models import EXPERTS, run, saved

from step_cli.errors import (
    InputError,
    NonFiniteError,
)

PLAIN = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(8, 8, bias=False) for _ in range(2))

    def forward(self, x):
        if x.shape[0] == 1 and x[0, 0] > 5:
            raise ValueError("not that one")
        for block in self.blocks:
            x = block(x)
        return x

def build():
    torch.manual_seed(0)
    net = Net()
    CHANGE
    return net
"""


def test_a_block_with_nothing_to_fit_stays(tmp_path: Path) -> None:
    source = PLAIN.replace("CHANGE", "net.blocks[1].weight = net.blocks[0].weight")
    x = np.random.default_rng(0).standard_normal((4, 8))
    options = saved(source, x, tmp_path)
    report = run(tmp_path / "in.pt", tmp_path / "out.pt", **options, refit="block")
    assert [block.refitted for block in report.blocks] == [False]
    assert all("tied" in (row.not_refitted or "") for row in report.layers)


def test_a_later_sample_that_the_model_does_not_take_is_refused(
    tmp_path: Path,
) -> None:
    x = np.random.default_rng(0).standard_normal((4, 8))
    x[3, 0] = 9
    options = saved(PLAIN.replace("    CHANGE\n", ""), x, tmp_path)
    with pytest.raises(InputError, match=r"does not take the .*: not that one"):
        run(tmp_path / "in.pt", tmp_path / "out.pt", **options, refit="layer")


OVERFLOW = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        return self.two(self.one(x) * 1e30 * 1e30)

def build():
    return Net()
"""


@pytest.mark.parametrize("more", [{"method": "wanda"}, {"refit": "layer"}])
def test_an_infinite_activation_is_exit_7_outside_of_blocks_too(
    more: dict[str, Any], tmp_path: Path
) -> None:
    options = saved(OVERFLOW, np.ones((4, 8)), tmp_path)
    with pytest.raises(NonFiniteError, match="an input of this layer") as caught:
        run(tmp_path / "in.pt", tmp_path / "out.pt", **options, **more)
    assert caught.value.exit_code == 7 and caught.value.tensor == "two.weight"


BARE = PLAIN.replace("x[0, 0] > 5", "False").replace("    CHANGE\n", "")


def test_a_sample_of_zeros_does_not_spoil_the_fit_of_blocks(tmp_path: Path) -> None:
    """A block without biases gives zero for it, of which no error is a share."""
    rng = np.random.default_rng(0)  # inputs that depend on each other can be fitted to
    x = rng.standard_normal((24, 5, 3)) @ rng.standard_normal((3, 8))
    x[3] = 0
    options = saved(BARE, x, tmp_path)
    report = run(tmp_path / "in.pt", tmp_path / "out.pt", **options, refit="block")
    assert [block.refitted for block in report.blocks] == [True, True]


@pytest.mark.parametrize("kind", ["layer", "block"])
def test_activations_too_large_to_be_squared_are_refused(
    kind: str, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).standard_normal((24, 5, 8))
    options = saved(BARE, x * 1e18, tmp_path)
    report = run(tmp_path / "in.pt", tmp_path / "out.pt", **options, refit=kind)
    assert all(row.error_before and row.error_after for row in report.layers)
    options = saved(BARE, x * 1e25, tmp_path)
    with pytest.raises(NonFiniteError) as caught:
        run(tmp_path / "in.pt", tmp_path / "two.pt", **options, refit=kind)
    assert (caught.value.tensor or "").startswith("blocks.0")
    assert not (tmp_path / "two.pt").exists()


def test_a_fit_by_blocks_that_finds_none_warns(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = EXPERTS.replace("x = block(x)", "x = x + block(x)")
    x = np.random.default_rng(0).standard_normal((36, 8))
    x[:, 0] = np.repeat([0, 1, 2], 12) + 0.5
    for source, warns in ((code, True), (EXPERTS, False)):
        caplog.clear()
        home = tmp_path / f"{warns}"
        home.mkdir()
        options = saved(source, x, home)
        report = run(home / "in.pt", home / "out.pt", **options, refit="block")
        assert (report.blocks == []) == warns
        assert ("as by --refit layer" in caplog.text) == warns
