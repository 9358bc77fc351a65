"""Weights under the names of what wrapped their model, and weights that are NaN."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import save_file  # noqa: E402

from step_cli.errors import InputError, NonFiniteError  # noqa: E402
from step_cli.models.spec import start_model  # noqa: E402

NET = """
import torch
from torch import nn

def build(scores=2):
    return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, scores))

def square():
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))

class Wrapped(nn.Module):
    def __init__(self):
        super().__init__()
        self.model = build()

def wrapped():
    return Wrapped()

def broken():
    model = build()
    model[0].weight.data[1, 2] = float("inf")
    return model

def masked():
    model = build()
    model.register_buffer("mask", torch.full((2, 2), float("-inf")))
    return model
"""
Rename = Callable[[str], str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    return tmp_path


def saved(folder: Path, rename: Rename, **changes: float) -> dict[str, Any]:
    """The weights of a model, in a file under other names."""
    torch.manual_seed(1)
    state = start_model(f"{folder / 'net.py'}:build").state_dict()
    for name, value in changes.items():
        state[name.replace("_", ".", 1)].view(-1)[0] = value
    named = {rename(name): value.clone() for name, value in state.items()}
    save_file(named, folder / "w.safetensors")
    return state


def start(folder: Path, function: str = "build", **options: Any) -> Any:
    spec, weights = f"{folder / 'net.py'}:{function}", str(folder / "w.safetensors")
    return start_model(spec, options, weights)


@pytest.mark.parametrize(
    ("rename", "function", "note"),
    [
        (str, "build", None),
        ("module.{}".format, "build", "read without 'module.' in its names"),
        ("model.{}".format, "build", "read without 'model.' in its names"),
        ("_orig_mod.{}".format, "build", "read without '_orig_mod.' in its names"),
        ("module._orig_mod.{}".format, "build", "read without 'module.' in its names"),
        ("a.b.net.{}".format, "build", "read without 'a.b.net.' in its names"),
        (lambda n: n.replace("2.", "2._orig_mod."), "build", "without '_orig_mod.' in"),
        (str, "wrapped", "read with 'model.' before its names"),
        ("model.{}".format, "wrapped", None),
        ("net.{}".format, "wrapped", "without 'net.' and with 'model.' before its"),
    ],
)
def test_a_prefix_that_all_names_share_is_no_difference(
    folder: Path,
    rename: Rename,
    function: str,
    note: str | None,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "step_cli")
    state = saved(folder, rename)
    ours = start(folder, function).state_dict()
    assert all(
        torch.equal(one, other)
        for one, other in zip(ours.values(), state.values(), strict=True)
    )
    assert (note in caplog.text) if note else not caplog.text


def test_what_averages_a_model_is_no_part_of_it(folder: Path) -> None:
    model = start_model(f"{folder / 'net.py'}:build")
    averaged = torch.optim.swa_utils.AveragedModel(model)
    save_file(averaged.state_dict(), folder / "w.safetensors")
    assert torch.equal(start(folder)[2].weight, model[2].weight)


@pytest.mark.parametrize(
    ("rename", "options", "words"),
    [
        (str, {"scores": 3}, r"^shapes differ: 2\.bias"),
        ("module.{}".format, {"scores": 3},
         r"^read without 'module\.' in its names: shapes differ: 2\.bias \[2\] for"),
        ("enc.{}x".format, {},
         r"lacks .*; all its names begin with 'enc\.', without which they do not"),
        (lambda n: n if n.startswith("0") else f"module.{n}", {},
         r"^the checkpoint lacks 1\.bias"),
    ],
)  # fmt: skip
def test_a_prefix_that_does_not_help_is_named(
    folder: Path, rename: Rename, options: dict[str, Any], words: str
) -> None:
    saved(folder, rename)
    with pytest.raises(InputError, match=words) as error:
        start(folder, **options)
    assert error.value.file == str(folder / "w.safetensors")


def test_a_model_of_transformers_is_found_behind_a_prefix(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        vocab_size=32, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, architectures=["BertForSequenceClassification"],
    )  # fmt: skip
    theirs = transformers.BertForSequenceClassification(config)
    theirs.save_pretrained(tmp_path)
    named = {f"module._orig_mod.{n}": v.clone() for n, v in theirs.state_dict().items()}
    save_file(named, tmp_path / "w.safetensors")
    ours = start_model(str(tmp_path), weights=str(tmp_path / "w.safetensors"))
    for name, value in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value)
    assert "read without 'module.' in its names" in caplog.text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_told_before_the_first_step(
    folder: Path, value: float
) -> None:
    saved(folder, "module.{}".format, **{"2_weight": value})
    with pytest.raises(NonFiniteError, match="1 of its 8 numbers are NaN or") as error:
        start(folder)
    assert error.value.file == str(folder / "w.safetensors")
    assert error.value.tensor == "module.2.weight"  # as the file has it
    saved(folder, str, **{"1_running_var": float("nan")})
    with pytest.raises(NonFiniteError, match="infinite at step 0, before"):
        start(folder)


def test_a_model_that_is_built_broken_is_told(folder: Path) -> None:
    spec = f"{folder / 'net.py'}:"
    with pytest.raises(NonFiniteError, match="1 of its 16 numbers") as error:
        start_model(spec + "broken")
    assert error.value.tensor == "0.weight"
    start_model(spec + "masked")  # attention is masked so


def test_an_onnx_file_that_holds_weights_transposed(folder: Path) -> None:
    onnx_exporter = pytest.importorskip("step_cli.formats.onnx.exporter")
    pytest.importorskip("onnxscript")
    from step_cli.formats.onnx.inputs import parse_input
    from step_cli.formats.open import open_checkpoint

    spec, path = f"{folder / 'net.py'}:square", folder / "m.onnx"
    torch.manual_seed(0)
    model = start_model(spec)
    inputs, x = [parse_input("input:float32:2,3,4")], torch.randn(2, 3, 4)
    onnx_exporter.export_onnx(model.eval(), inputs, {"input": x}, {}, path)
    stored = {tensor.name: tensor for tensor in open_checkpoint(path).tensors}
    assert stored["0.weight"].axis == 0 and stored["0.weight"].shape == (4, 4)
    for name, value in start_model(spec, weights=str(path)).state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
