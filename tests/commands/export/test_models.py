"""Models of the user's that `export --to onnx` must judge rightly or refuse."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from commands.export.exporting import run

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")
pytest.importorskip("onnxruntime")

from step_cli.errors import (  # noqa: E402
    InputError,
)
from step_cli.formats.pytorch.arrays import to_array  # noqa: E402
from step_cli.formats.safetensors.writer import save_safetensors  # noqa: E402
from step_cli.optim.mask import nm_mask  # noqa: E402

ODD = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        {forward}

def build():
    torch.manual_seed(0)
    net = Net()
    {after}
    return net
"""


def save_odd(folder: Path, forward: str, after: str = "pass") -> None:
    """A model of the user's with two weights, both 2:4 along axis 1."""
    (folder / "net.py").write_text(ODD.format(forward=forward, after=after))
    scope: dict[str, Any] = {}
    exec((folder / "net.py").read_text(), scope)
    model = scope["build"]()
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(nm_mask(weight.abs(), "2:4", 1))
    state = {name: to_array(value) for name, value in model.state_dict().items()}
    save_safetensors(folder / "m.safetensors", state)


@pytest.mark.parametrize(
    "after",
    ["net.b.weight = net.a.weight", "net.b.weight.data.copy_(net.a.weight)"],
    ids=["shared", "equal"],
)
def test_weights_that_are_stored_once_are_found_under_each_name(
    tmp_path: Path, after: str
) -> None:
    save_odd(tmp_path, "return self.b(torch.relu(self.a(x)))", after)
    report = run(tmp_path, tmp_path / "m.onnx")
    assert [layer.pattern_ok for layer in report.layers] == [True, True]
    assert len({layer.onnx_name for layer in report.layers}) == 1


def test_a_weight_used_in_both_directions_must_hold_in_both(tmp_path: Path) -> None:
    weight = "nn.functional.linear(self.a(x), self.a.weight.t())"
    save_odd(tmp_path, f"return self.b({weight})")
    report = run(tmp_path, tmp_path / "m.onnx")
    verdicts = [layer.pattern_ok for layer in report.layers]
    assert (report.exit_code, verdicts) == (1, [False, True])


def test_what_is_not_in_the_graph_is_unknown_and_no_proof(tmp_path: Path) -> None:
    save_odd(tmp_path, "return self.a(x)")
    report = run(tmp_path, tmp_path / "m.onnx")
    assert [layer.pattern_ok for layer in report.layers] == [True, None]
    assert "not in the graph" in str(report.layers[1].advice)
    # A product by the sum of both is dense, whatever each of them holds.
    weight = "self.a.weight + self.b.weight"
    save_odd(tmp_path, f"return nn.functional.linear(x, {weight})")
    code = f"{shutil.copy(tmp_path / 'net.py', tmp_path / 'sum.py')}:build"
    report = run(tmp_path, tmp_path / "n.onnx", model=code)
    assert (report.exit_code, report.output) == (1, None)
    assert "nothing to verify" in report.notes[0]
    assert not (tmp_path / "n.onnx").exists()


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        ("raise ValueError('my own\\ntrouble')", "raises ValueError .*: my own; see"),
        ("return 3, self.a(x)", "the model returns int; return tensors"),
        ("self.a(x)", "the model returns NoneType"),
        ("return self", "the model returns Net"),
    ],
)
def test_a_faulty_model_is_told_in_its_own_words(
    tmp_path: Path, forward: str, message: str
) -> None:
    save_odd(tmp_path, forward)
    with pytest.raises(InputError, match=message):
        run(tmp_path, tmp_path / "m.onnx")
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("forward", ["return {'y': self.a(x), 'z': None}, [x + 1]"])
def test_outputs_may_be_nested(tmp_path: Path, forward: str) -> None:
    save_odd(tmp_path, forward)
    report = run(tmp_path, tmp_path / "m.onnx")
    assert report.parity is not None and report.parity.ok
