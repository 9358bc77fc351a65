"""`prune` by Wanda and SparseGPT, transposable, and by density, on checkpoints."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands.prune.small_models import built, run
from safetensors.torch import load_file, save_file
from torch import nn

from step_cli.errors import (
    InputError,
    NonFiniteError,
    NothingSelectedError,
    StepError,
    UsageError,
)
from step_cli.formats.open import open_checkpoint
from step_cli.nm.pattern import NMPattern
from step_cli.oneshot.layer_matrix import LayerMatrix
from step_cli.oneshot.sparsegpt import InputHessian, sparsegpt_prune
from step_cli.oneshot.wanda import InputNorms
from step_cli.optim.mask import nm_mask
from step_cli.recipes.transposable import transposable_mask

pytest.importorskip("transformers")

from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

TWO_FOUR = NMPattern(2, 4)


@pytest.fixture
def gpt2(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=256, n_positions=16, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    return tmp_path / "gpt2"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("the quick brown fox jumps over the lazy dog\n" * 20)
    return path


def hessian_of(model: nn.Module, layer: nn.Module, batch: torch.Tensor) -> Any:
    seen = InputHessian()
    handle = layer.register_forward_pre_hook(
        lambda module, args: seen.add(LayerMatrix(module).of_input(args[0]))
    )
    with torch.no_grad():
        model(batch, use_cache=False)
    handle.remove()
    return seen.hessian[0]


def samples_of(text: Path, length: int, most: int) -> torch.Tensor:
    tokens = torch.tensor(list(text.read_bytes()))
    count = len(tokens) // length
    rows = tokens[: count * length].view(count, length)
    return rows[torch.linspace(0, count - 1, min(most, count)).round().long()]


def test_sparsegpt_of_gpt2_is_the_function_on_what_its_first_layer_sees(
    gpt2: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = run(gpt2, out, method="sparsegpt", calibration=text)
    model = GPT2LMHeadModel.from_pretrained(gpt2).eval()
    layer = model.transformer.h[0].attn.c_attn
    hessian = hessian_of(model, layer, samples_of(text, 16, 128))
    expected = sparsegpt_prune(layer.weight.detach(), hessian, TWO_FOUR, axis=0)
    name = "transformer.h.0.attn.c_attn.weight"
    found = load_file(out / "model.safetensors")[name]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert {row.axis for row in report.layers} == {0} and len(report.layers) == 8
    assert report.totals.density == 0.5
    plain = GPT2LMHeadModel.from_pretrained(out).eval()
    assert torch.equal(plain.transformer.h[0].attn.c_attn.weight, found)
    old = layer.weight.detach().abs()
    row = next(row for row in report.layers if row.name == name)
    assert row.retained == pytest.approx(float(old[found != 0].sum() / old.sum()))


def test_wanda_keeps_weights_bit_for_bit(
    gpt2: Path, text: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(gpt2, out, method="wanda", calibration=text)
    model = GPT2LMHeadModel.from_pretrained(gpt2).eval()
    layer = model.transformer.h[0].attn.c_attn
    hessian = hessian_of(model, layer, samples_of(text, 16, 128))
    scores = layer.weight.detach().double().abs() * hessian.diagonal().sqrt()[:, None]
    found = load_file(out / "model.safetensors")
    keep = found["transformer.h.0.attn.c_attn.weight"] != 0
    assert torch.equal(keep, nm_mask(scores, TWO_FOUR, 0))
    for name, new in found.items():
        old = model.state_dict()[name]
        assert torch.equal(new[new != 0], old[new != 0]), name
        assert torch.equal(new, old) or name.endswith(
            ("c_attn.weight", "c_proj.weight", "c_fc.weight")
        )
    assert (tmp_path / "gpt2" / "config.json").read_bytes() == (
        out / "config.json"
    ).read_bytes()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_mapped_and_computed_in_fp32(
    dtype: torch.dtype, text: Path, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=16,
    )  # fmt: skip
    LlamaForCausalLM(config).to(dtype).save_pretrained(tmp_path / "in")
    for method in ("wanda", "sparsegpt"):
        out = tmp_path / method
        options = {"method": method, "calibration": text, "exclude": ["lm_head.*"]}
        report = run(tmp_path / "in", out, **options)
        assert report.totals.layers == 14 and report.totals.density <= 0.5
        found = load_file(out / "model.safetensors")
        assert {value.dtype for value in found.values()} == {dtype}
        model = LlamaForCausalLM.from_pretrained(tmp_path / "in", dtype=torch.float32)
        layer = model.model.layers[0].self_attn.q_proj
        hessian = hessian_of(model.eval(), layer, samples_of(text, 16, 128))
        weight = layer.weight.detach()
        if method == "wanda":
            scores = weight.double().abs() * hessian.diagonal().sqrt()
            expected = weight * nm_mask(scores, TWO_FOUR, 1)
        else:
            expected = sparsegpt_prune(weight, hessian, TWO_FOUR)
        name = "model.layers.0.self_attn.q_proj.weight"
        assert torch.equal(found[name] != 0, expected != 0)
        torch.testing.assert_close(
            found[name], expected.to(dtype), rtol=0.02, atol=1e-4
        )


NET = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 8))

def example_inputs():
    return {"input": torch.zeros(1, 4, 4, 4)}
"""


@pytest.fixture
def net(tmp_path: Path) -> tuple[Path, str]:
    """A convolutional network in a file of torch, channels last, and its SPEC."""
    code = tmp_path / "net.py"
    code.write_text(NET)
    model = built(NET)
    model[0].weight.data = model[0].weight.data.to(memory_format=torch.channels_last)
    torch.save(model.state_dict(), tmp_path / "net.pt")
    return tmp_path / "net.pt", f"{code}:build"


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_convolutions_in_a_torch_file(
    method: str, net: tuple[Path, str], tmp_path: Path
) -> None:
    source, spec = net
    arrays = np.random.default_rng(0).standard_normal((32, 4, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "x.npz", input=arrays)
    out = tmp_path / "out.pt"
    options = {"method": method, "calibration": tmp_path / "x.npz", "model": spec}
    report = run(source, out, **options)
    assert [row.axis for row in report.layers] == [1, 1]
    old, new = torch.load(source), torch.load(out)
    assert new["0.weight"].is_contiguous(memory_format=torch.channels_last)
    conv = nn.Conv2d(4, 8, 3)
    rows = LayerMatrix(conv).of_input(torch.from_numpy(arrays))
    (matrix,) = LayerMatrix(conv).of_weight(old["0.weight"])
    if method == "wanda":
        seen = InputNorms()
        seen.add(rows)
        keep = nm_mask(matrix.double().abs() * seen.norms[0], TWO_FOUR, 1)
        expected = matrix * keep
    else:
        hessians = InputHessian()
        hessians.add(rows)
        expected = sparsegpt_prune(matrix, hessians.hessian[0], TWO_FOUR)
    (found,) = LayerMatrix(conv).of_weight(new["0.weight"])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_second_run_changes_nothing(gpt2: Path, text: Path, tmp_path: Path) -> None:
    for method in ("wanda", "sparsegpt"):
        once, twice = tmp_path / f"{method}1", tmp_path / f"{method}2"
        run(gpt2, once, method=method, calibration=text)
        assert run(once, twice, method=method, calibration=text).totals.changed == 0
        name = "model.safetensors"
        assert (once / name).read_bytes() == (twice / name).read_bytes()


def test_a_dry_run_says_the_same(gpt2: Path, text: Path, tmp_path: Path) -> None:
    options = {"method": "wanda", "calibration": text}
    said = run(gpt2, tmp_path / "out", dry_run=True, **options)
    assert not (tmp_path / "out").exists()
    assert run(gpt2, tmp_path / "out", **options).layers == said.layers


def holds(array: np.ndarray, axis: int, n: int = 2, m: int = 4) -> bool:
    rows = np.moveaxis(array, axis, -1).reshape(-1, m)
    return bool(((rows != 0).sum(axis=1) <= n).all())


def test_transposable_holds_along_both_axes(tmp_path: Path) -> None:
    source, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    torch.manual_seed(0)
    names = {
        "a.weight": (8, 16),
        "transformer.h.0.mlp.c_fc.weight": (16, 8),
        "conv.weight": (8, 4, 3, 3),
        "experts.up_proj": (2, 8, 12),
        "odd.weight": (6, 8),
    }
    given = {name: torch.randn(shape) for name, shape in names.items()}
    save_file(given, source)
    axis = [("experts.*", 2)]
    report = run(source, out, transposable=True, axis=axis)
    assert {row.name for row in report.layers} == set(names) - {"odd.weight"}
    assert [(s.name, s.reason) for s in report.skipped] == [("odd.weight", "size")]
    found = load_file(out)
    for name, axes in {"a.weight": (0, 1), "conv.weight": (0, 1)}.items():
        keep = transposable_mask(given[name].abs(), TWO_FOUR)
        assert torch.equal(found[name], torch.where(keep, given[name], 0))
        assert all(holds(found[name].numpy(), axis) for axis in axes)
    assert all(holds(found["experts.up_proj"].numpy(), axis) for axis in (1, 2))
    again = tmp_path / "c.safetensors"
    assert run(out, again, transposable=True, axis=axis).totals.changed == 0
    assert again.read_bytes() == out.read_bytes()


def test_transposable_by_wanda(gpt2: Path, text: Path, tmp_path: Path) -> None:
    run(gpt2, tmp_path / "o", method="wanda", calibration=text, transposable=True)
    found = load_file(tmp_path / "o" / "model.safetensors")
    weight = found["transformer.h.1.mlp.c_proj.weight"].numpy()
    assert holds(weight, 0) and holds(weight, 1)


def test_density_gives_each_layer_an_n(tmp_path: Path) -> None:
    source, out = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    torch.manual_seed(0)
    given = {
        "flat.weight": torch.randn(32, 32).sign() * (1 + 0.01 * torch.rand(32, 32)),
        "peaked.weight": (torch.rand(32, 32) < 0.1).float() + 0.01 * torch.rand(32, 32),
    }
    save_file(given, source)
    report = run(source, out, density=0.4, nm=NMPattern(2, 8))
    patterns = {row.name: row.pattern for row in report.layers}
    assert report.totals.density <= 0.4
    flat, peaked = (int(patterns[name][0]) for name in sorted(patterns))
    assert flat > peaked  # where weights are alike, pruning costs most
    plan = open_checkpoint(out).plan
    assert plan is not None
    assert {name: str(layer.pattern) for name, layer in plan.items()} == patterns
    with pytest.raises(UsageError, match="one weight of every group"):
        run(source, tmp_path / "c.safetensors", density=0.01)


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"method": "wanda"}, UsageError, "needs --calibration"),
        ({"method": "sparsegpt"}, UsageError, "needs --calibration"),
        ({"model": "sample:x"}, UsageError, "--model does not apply"),
        ({"transposable": True, "method": "random"}, UsageError, "does not go with"),
        ({"method": "wanda", "calibration": "t"}, UsageError, "pass --model"),
    ],
)
def test_options_that_do_not_go_together(
    options: dict[str, Any], kind: type[StepError], words: str, tmp_path: Path
) -> None:
    source = tmp_path / "a.safetensors"
    save_file({"a.weight": torch.ones(4, 8)}, source)
    with pytest.raises(kind, match=words):
        run(source, tmp_path / "b.safetensors", **options)


def test_a_layer_the_model_runs_by_other_means_is_refused(
    text: Path, tmp_path: Path
) -> None:
    code = tmp_path / "net.py"
    code.write_text("from torch import nn\ndef build(): return nn.LSTM(8, 8)\n")
    source = tmp_path / "a.safetensors"
    save_file(nn.LSTM(8, 8).state_dict(), source)
    np.savez(tmp_path / "x.npz", input=np.ones((4, 3, 8), np.float32))
    with pytest.raises(InputError, match="--method magnitude") as caught:
        run(
            source, tmp_path / "b.safetensors", method="wanda",
            calibration=tmp_path / "x.npz", model=f"{code}:build",
        )  # fmt: skip
    assert caught.value.tensor == "weight_hh_l0"


def test_samples_that_give_nan_name_the_layer(gpt2: Path, tmp_path: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(gpt2)
    model.transformer.wpe.weight.data[3, 0] = float("nan")
    model.save_pretrained(gpt2)
    rows = tmp_path / "a.jsonl"
    rows.write_text(json.dumps({"input_ids": [1, 2, 3, 4, 5]}) + "\n")
    with pytest.raises(NonFiniteError, match="NaN or infinite") as caught:
        run(gpt2, tmp_path / "out", method="wanda", calibration=rows)
    assert caught.value.tensor == "transformer.h.0.attn.c_attn.weight"
    assert not (tmp_path / "out").exists()


def test_an_input_that_is_never_active(
    net: tuple[Path, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source, spec = net
    arrays = np.random.default_rng(0).standard_normal((32, 4, 4, 4)).astype(np.float32)
    arrays[:, 2] = 0
    np.savez(tmp_path / "x.npz", input=arrays)
    caplog.set_level("INFO")
    options = {"calibration": tmp_path / "x.npz", "model": spec}
    run(source, tmp_path / "b.pt", method="sparsegpt", **options)
    assert "0.weight: 9 inputs were never active" in caplog.text
    assert not torch.load(tmp_path / "b.pt")["0.weight"][:, 2].any()


TRANSPOSED = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.down = nn.Conv2d(4, 8, 2)
        self.up = nn.ConvTranspose2d(8, 4, 2)
        self.table = nn.Embedding(4, 8)
        self.mid, self.last = nn.Linear(4, 8), nn.Linear(8, 8)

    def forward(self, x):
        x = self.up(self.down(x).relu())
        x = self.mid(x.flatten(2).transpose(1, 2)).relu()
        return self.last(x) + self.table.weight[0]

def build():
    torch.manual_seed(0)
    return Net()
"""


PRODUCTS = {"down.weight", "mid.weight", "last.weight"}


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_what_the_model_says_is_no_such_weight_is_skipped(
    method: str, tmp_path: Path
) -> None:
    code = tmp_path / "net.py"
    code.write_text(TRANSPOSED)
    source, out = tmp_path / "net.safetensors", tmp_path / "out.safetensors"
    save_file(built(TRANSPOSED).state_dict(), source)
    arrays = np.random.default_rng(0).standard_normal((8, 4, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=arrays)
    options: dict[str, Any] = {
        "method": method, "calibration": tmp_path / "x.npz", "model": f"{code}:build",
    }  # fmt: skip
    report = run(source, out, **options)
    assert {layer.name for layer in report.layers} == PRODUCTS
    reasons = {tensor.name: tensor.reason for tensor in report.skipped}
    assert reasons["up.weight"] == "consumer" and reasons["table.weight"] == "embedding"
    assert report.totals.coverage == 1
    assert torch.equal(load_file(out)["up.weight"], load_file(source)["up.weight"])
    assert set(open_checkpoint(out).plan or ()) == PRODUCTS
    with pytest.raises(NothingSelectedError, match=r": table\.weight, up\.weight"):
        run(source, tmp_path / "no.safetensors", exclude=[*PRODUCTS], **options)
    with pytest.raises(InputError, match="is no weight of a linear layer"):
        run(source, tmp_path / "no.safetensors", include=["up.weight"], **options)


def test_so_it_is_where_the_model_is_known_for_permuting(tmp_path: Path) -> None:
    code = tmp_path / "net.py"
    code.write_text(TRANSPOSED)
    source, out = tmp_path / "net.safetensors", tmp_path / "out.safetensors"
    save_file(built(TRANSPOSED).state_dict(), source)
    options: dict[str, Any] = {
        "permute": True, "model": f"{code}:build", "input": ["x:float32:2x4x4x4"],
    }  # fmt: skip
    report = run(source, out, **options)
    assert {layer.name for layer in report.layers} == PRODUCTS
    reasons = {tensor.name: tensor.reason for tensor in report.skipped}
    assert reasons["up.weight"] == "consumer" and reasons["table.weight"] == "embedding"
    with pytest.raises(NothingSelectedError, match="transposed convolutions"):
        run(source, tmp_path / "n.safetensors", exclude=[*PRODUCTS], **options)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_samples_that_tell_nothing_are_refused(
    method: str, net: tuple[Path, str], tmp_path: Path
) -> None:
    source, spec = net
    path, out = tmp_path / "x.npz", tmp_path / "b.pt"
    options: dict[str, Any] = {"method": method, "calibration": path, "model": spec}
    arrays = np.ones((4, 4, 4, 4), np.float32)
    for bad, error in ((0, InputError), (np.nan, NonFiniteError)):
        np.savez(path, input=arrays * np.float32(bad))
        with pytest.raises(error):
            run(source, out, **options)
    state = torch.load(source)
    state["0.bias"].fill_(-1e6)  # no channel of what the Linear sees is ever active
    torch.save(state, source)
    np.savez(path, input=arrays)
    with pytest.raises(InputError, match="all inputs of this layer are zero") as caught:
        run(source, out, **options)
    assert caught.value.tensor == "3.weight"
    assert not out.exists()


def test_the_command(gpt2: Path, text: Path, step_cli: Callable[..., Any]) -> None:
    out = gpt2.parent / "out"
    done = step_cli(
        "prune", gpt2, out, "--method", "wanda", "--calibration", text, "--json"
    )
    assert done.code == 0 and done.json["method"] == "wanda"
    assert step_cli("verify-nm", out).code == 0
    wrong = step_cli("prune", gpt2, out, "--density", "1.5")
    assert wrong.code == 2 and "--density" in wrong.error


EXPERTS = """
import torch
from torch import nn

class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up_weight = nn.Parameter(torch.randn(8, 8))
        self.linear = nn.Linear(8, 8)
        self.idle = nn.Linear(8, 8)

    def forward(self, x):
        return self.linear(x @ self.up_weight.t())

def build():
    return nn.Sequential(*(Experts() for _ in range(3)))
"""


def test_all_tensors_that_cannot_be_observed_are_named_at_once(tmp_path: Path) -> None:
    code = tmp_path / "net.py"
    code.write_text(EXPERTS)
    source, out = tmp_path / "net.safetensors", tmp_path / "out.safetensors"
    save_file(built(EXPERTS).state_dict(), source)
    arrays = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", input=arrays)
    options: dict[str, Any] = {
        "method": "wanda", "calibration": tmp_path / "x.npz", "model": f"{code}:build",
    }  # fmt: skip
    up, idle = "0.up_weight", "0.idle.weight"
    all_of = r"exclude all 3 such tensors: --exclude '\*\."
    with pytest.raises(InputError, match=all_of + r"up_weight', or") as caught:
        run(source, out, **options)
    assert caught.value.tensor == up
    with pytest.raises(InputError, match=all_of + r"idle\.weight', or") as caught:
        run(source, out, exclude=["*up_weight"], **options)
    assert caught.value.tensor == idle
    with pytest.raises(InputError, match="--exclude it, or") as caught:
        run(source, out, exclude=["*up_weight", "[12].idle.*"], **options)
    assert caught.value.tensor == idle
    report = run(source, out, exclude=["*up_weight", "*idle.weight"], **options)
    assert [layer.name for layer in report.layers] == [
        f"{number}.linear.weight" for number in range(3)
    ]
