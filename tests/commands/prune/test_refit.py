"""`prune --refit` and `--recalibrate-bn` on checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from step_cli import verify
from step_cli.commands.prune import run as prune
from step_cli.config.commands import PruneConfig
from step_cli.errors import (
    InputError,
    NonFiniteError,
    NothingSelectedError,
    StepError,
    UsageError,
)
from step_cli.reports import PruneReport

METHODS = ("magnitude", "random", "wanda", "sparsegpt")


def run(source: Path, out: Path, **options: object) -> PruneReport:
    return prune.run(PruneConfig(checkpoint=source, out=out, **options))  # type: ignore[arg-type]


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


def same_masks(one: Path, other: Path) -> bool:
    return bool(verify(one, baseline=other).ok)


@pytest.mark.parametrize("method", METHODS)
def test_errors_fall_and_the_mask_is_that_without_a_fit(
    method: str, gpt2: Path, text: Path, tmp_path: Path
) -> None:
    first = {"method": method, "seed": 3, "nm": "2:4"}
    calibrated = method in ("wanda", "sparsegpt")
    samples = {"calibration": text, "calibration_samples": 32}
    plain = run(gpt2, tmp_path / "none", **first, **(samples if calibrated else {}))
    assert plain.refit == "none" and plain.layers[0].error_before is None
    for kind in ("layer", "block"):
        out = tmp_path / kind
        report = run(gpt2, out, **first, **samples, refit=kind)
        assert report.refit == kind and report.totals.density == 0.5
        for row in report.layers:
            assert row.error_before is not None and row.error_after is not None
            assert row.held_out_after is not None and row.not_refitted is None
            assert row.error_after < row.error_before or kind == "block"
        assert [b.name for b in report.blocks] == (
            ["transformer.h.0", "transformer.h.1"] if kind == "block" else []
        )
        assert all(block.refitted for block in report.blocks)
        if not calibrated:  # else later blocks see, and so keep, something else
            assert same_masks(out, tmp_path / "none")
            assert report.totals == plain.totals
        assert verify(out).ok
        new, old = (load_file(x / "model.safetensors") for x in (out, gpt2))
        moved = {name for name in old if not torch.equal(new[name], old[name])}
        blocks = {name for name in old if ".h." in name}
        expected = blocks if kind == "block" else {row.name for row in report.layers}
        assert moved == expected


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_precisions_are_rounded_before_they_are_judged(
    dtype: torch.dtype, gpt2: Path, text: Path, tmp_path: Path
) -> None:
    name = "model.safetensors"
    old = {key: x.to(dtype) for key, x in load_file(gpt2 / name).items()}
    save_file(old, gpt2 / name, {"format": "pt"})
    samples = {"calibration": text, "calibration_samples": 32}
    run(gpt2, tmp_path / "none")
    for kind in ("layer", "block"):
        report = run(gpt2, tmp_path / kind, **samples, refit=kind)
        new = load_file(tmp_path / kind / name)
        assert {x.dtype for x in new.values()} == {dtype}
        assert same_masks(tmp_path / kind, tmp_path / "none")
        rows = report.layers if kind == "layer" else report.blocks
        for row in rows:
            assert row.error_after is not None and row.error_before is not None
            assert row.error_after < row.error_before


def test_the_same_comes_out_twice_and_a_dry_run_says_the_same(
    gpt2: Path, text: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"calibration": text, "calibration_samples": 16}
    for kind in ("layer", "block"):
        one, two = tmp_path / f"{kind}1", tmp_path / f"{kind}2"
        report = run(gpt2, one, refit=kind, **options)
        assert run(gpt2, two, refit=kind, **options).layers == report.layers
        dry = run(gpt2, tmp_path / "dry", refit=kind, dry_run=True, **options)
        assert dry.layers == report.layers and dry.blocks == report.blocks
        assert not (tmp_path / "dry").exists()
        name = "model.safetensors"
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_what_complies_is_not_fitted_again(
    gpt2: Path, text: Path, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"calibration": text, "refit": "layer"}
    run(gpt2, tmp_path / "once", **options)
    report = run(tmp_path / "once", tmp_path / "twice", **options)
    assert {row.error_before for row in report.layers} == {0.0}
    name = "model.safetensors"
    once, twice = (tmp_path / x / name for x in ("once", "twice"))
    assert once.read_bytes() == twice.read_bytes()


TIED = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(nn.Linear(8, 8), nn.ReLU(True), nn.Linear(8, 8))
        self.blocks[2].weight = self.blocks[0].weight
        self.last = nn.Linear(8, 8)
        self.lstm = nn.LSTM(8, 8)

    def forward(self, x):
        return self.lstm(self.last(self.blocks(x)))[0]

def build():
    torch.manual_seed(0)
    return Net()
"""


def test_what_cannot_be_fitted_is_pruned_all_the_same(tmp_path: Path) -> None:
    code = tmp_path / "net.py"
    code.write_text(TIED)
    space: dict[str, Any] = {}
    exec(TIED, space)
    torch.save(space["build"]().state_dict(), tmp_path / "in.pt")
    x = np.random.default_rng(0).standard_normal((24, 5, 8)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    options = {"calibration": tmp_path / "x.npz", "model": f"{code}:build"}
    run(tmp_path / "in.pt", tmp_path / "none.pt")
    plain = torch.load(tmp_path / "none.pt")
    for kind in ("layer", "block"):
        report = run(tmp_path / "in.pt", tmp_path / f"{kind}.pt", refit=kind, **options)
        rows = {row.name: row for row in report.layers}
        tied = rows["blocks.0.weight"].not_refitted
        assert tied is not None and "tied" in tied
        assert rows["blocks.2.weight"].not_refitted == tied
        assert "linear layer" in (rows["lstm.weight_hh_l0"].not_refitted or "")
        assert rows["last.weight"].not_refitted is None
        new = torch.load(tmp_path / f"{kind}.pt")
        assert torch.equal(new["blocks.0.weight"], plain["blocks.0.weight"])
        assert torch.equal(new["lstm.weight_hh_l0"], plain["lstm.weight_hh_l0"])
        assert not torch.equal(new["last.weight"], plain["last.weight"])
        assert same_masks(tmp_path / f"{kind}.pt", tmp_path / "none.pt")


SHARED = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))
        self.other = nn.Linear(8, 8)
        self.again = self.one

    def forward(self, x):
        return self.again(self.other(self.one(x)).relu())

def build():
    torch.manual_seed(0)
    return Net()
"""


@pytest.mark.parametrize("kind", ["layer", "block"])
def test_a_module_that_is_stored_under_two_names_stays_one(
    kind: str, tmp_path: Path
) -> None:
    """Each name has numbers of its own in the file: no tie is to be seen there."""
    x = np.random.default_rng(0).standard_normal((24, 8))
    options = saved(SHARED, x, tmp_path)
    state = {k: v.clone() for k, v in built(SHARED).state_dict().items()}
    source, out = tmp_path / "in.safetensors", tmp_path / "out.safetensors"
    save_file(state, source)
    report = run(source, out, **options, refit=kind)
    new = load_file(out)
    for name in state:
        if name.startswith("one."):
            assert torch.equal(new[name], new[name.replace("one", "again")]), name
    reasons = {row.name: row.not_refitted for row in report.layers}
    assert reasons.pop("other.weight") is None
    assert set(reasons.values()) == {"other modules of the model use it too"}
    with pytest.raises(InputError, match="shared with other tensors"):
        run(source, tmp_path / "b.safetensors", **options, recalibrate_bn=True)


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


def built(source: str, path: Path | None = None) -> nn.Module:
    space: dict[str, Any] = {}
    exec(source, space)
    model: nn.Module = space["build"]()
    if path is not None:
        model.load_state_dict(torch.load(path))
    return model.eval()


def statistics(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Mean and variance of what each batch norm gets, measured in one batch."""
    found: dict[str, Tensor] = {}

    def hook_of(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Tensor], output: Tensor) -> None:
            seen = args[0].transpose(0, 1).flatten(1)
            found[f"{name}.running_mean"] = seen.mean(1)
            found[f"{name}.running_var"] = seen.var(1)
            mean, var = seen.mean(1), seen.var(1, unbiased=False)
            shape = (1, -1, *[1] * (args[0].dim() - 2))
            assert isinstance(module, nn.BatchNorm2d)
            new = (args[0] - mean.view(shape)) / (var.view(shape) + module.eps).sqrt()
            output.copy_(new * module.weight.view(shape) + module.bias.view(shape))

        return hook

    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            module.register_forward_hook(hook_of(name))
    with torch.no_grad():
        model(x)
    return found


@pytest.mark.parametrize(
    "more",
    [
        {"method": "magnitude"},
        {"method": "random"},
        {"method": "wanda"},
        {"method": "sparsegpt"},
        {"method": "magnitude", "refit": "layer"},
        {"method": "sparsegpt", "refit": "block"},
        {"method": "magnitude", "transposable": True, "refit": "layer"},
    ],
)
def test_statistics_are_those_of_the_samples_in_the_pruned_network(
    more: dict[str, Any], resnet: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    source, options = resnet
    out, plain = tmp_path / "out.pt", tmp_path / "plain.pt"
    report = run(source, out, **options, **more, recalibrate_bn=True)
    names = ["norm", *(f"blocks.{i}.norm{j}" for i in (0, 1) for j in (1, 2))]
    assert report.batch_norms == names
    calibrated = "refit" in more or more["method"] in ("wanda", "sparsegpt")
    run(source, plain, **more, **(options if calibrated else {}))
    old, new = torch.load(plain), torch.load(out)
    x = torch.from_numpy(np.load(tmp_path / "x.npz")["x"])
    expected = statistics(built(NET, plain), x)
    for name, value in new.items():
        if name in expected:
            assert not torch.equal(value, old[name])
            torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)
        else:
            assert torch.equal(value, old[name]), name


def test_statistics_are_stored_in_their_dtype_and_place(
    resnet: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    source, options = resnet
    state = {
        name: value.bfloat16() if value.is_floating_point() else value
        for name, value in torch.load(source).items()
    }
    save_file(state, tmp_path / "in.safetensors")
    out = tmp_path / "out.safetensors"
    run(tmp_path / "in.safetensors", out, **options, recalibrate_bn=True)
    new = load_file(out)
    assert {name: x.dtype for name, x in new.items()} == {
        name: x.dtype for name, x in state.items()
    }
    assert not torch.equal(new["norm.running_var"], state["norm.running_var"])
    assert torch.equal(new["idle.running_var"], state["idle.running_var"])


def test_a_model_without_batch_norms_is_refused(
    gpt2: Path, text: Path, tmp_path: Path
) -> None:
    with pytest.raises(NothingSelectedError, match="no batch norm") as caught:
        run(gpt2, tmp_path / "out", calibration=text, recalibrate_bn=True)
    assert caught.value.exit_code == 3
    assert not (tmp_path / "out").exists()


def test_a_batch_of_one_number_for_each_channel_is_refused(
    resnet: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    source, options = resnet
    x = np.ones((1, 4, 1, 1), np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    what = "batch norm 'norm' gets a single number.*give at least two samples"
    with pytest.raises(InputError, match=what) as caught:
        run(source, tmp_path / "out.pt", **options, recalibrate_bn=True)
    assert caught.value.file == str(tmp_path / "x.npz")
    np.savez(tmp_path / "x.npz", x=np.concatenate([x, x * 2]))
    run(source, tmp_path / "out.pt", **options, recalibrate_bn=True)


@pytest.mark.parametrize(("dtype", "fits"), [("float16", False), ("float32", True)])
def test_statistics_that_overflow_name_their_tensor(
    dtype: str, fits: bool, resnet: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    source, options = resnet
    state = {
        name: value.to(getattr(torch, dtype)) if value.is_floating_point() else value
        for name, value in torch.load(source).items()
    }
    torch.save(state, source)
    x = np.load(tmp_path / "x.npz")["x"]
    np.savez(tmp_path / "x.npz", x=x * 2000)
    if fits:
        run(source, tmp_path / "out.pt", **options, recalibrate_bn=True)
        return
    what = "too large for torch.float16; look at the samples"
    with pytest.raises(NonFiniteError, match=what) as caught:
        run(source, tmp_path / "out.pt", **options, recalibrate_bn=True)
    assert caught.value.tensor == "norm.running_var"
    assert not (tmp_path / "out.pt").exists()


def test_one_sample_is_too_few_for_a_refit(
    resnet: tuple[Path, dict[str, Any]], tmp_path: Path
) -> None:
    source, options = resnet
    with pytest.raises(InputError, match="a single sample") as caught:
        run(
            source, tmp_path / "out.pt", **options, refit="layer",
            calibration_samples=1,
        )  # fmt: skip
    assert caught.value.file == str(tmp_path / "x.npz")


@pytest.mark.parametrize(
    ("options", "kind", "words"),
    [
        ({"refit": "layer"}, UsageError, "--refit layer needs --calibration"),
        ({"recalibrate_bn": True}, UsageError, "--recalibrate-bn needs --calibration"),
        ({"calibration": "t"}, UsageError, "without --refit or --recalibrate-bn"),
        ({"refit": "block", "calibration": "t"}, UsageError, "pass --model"),
    ],
)
def test_options_that_do_not_go_together(
    options: dict[str, Any], kind: type[StepError], words: str, tmp_path: Path
) -> None:
    source = tmp_path / "a.safetensors"
    save_file({"a.weight": torch.ones(4, 8)}, source)
    with pytest.raises(kind, match=words):
        run(source, tmp_path / "b.safetensors", **options)


def test_the_command(gpt2: Path, text: Path, step_cli: Callable[..., Any]) -> None:
    out = gpt2.parent / "out"
    words = ["--refit", "block", "--calibration", text, "--calibration-samples", 8]
    done = step_cli("prune", gpt2, out, *words)
    assert done.code == 0 and "held out" in done.out and "transformer.h.0" in done.out
    document = step_cli("prune", gpt2, out, *words, "--force", "--json").json
    row = document["layers"][0]
    assert {"error_before", "error_after", "held_out_before"} <= set(row)
    assert document["refit"] == "block" and document["blocks"][0]["refitted"] is True
    assert step_cli("verify-nm", out).code == 0
    missing = step_cli("prune", gpt2, out, "--refit", "layer", "--force")
    assert missing.code == 2 and "needs --calibration" in missing.error


EXPERTS = """
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


def saved(source: str, x: np.ndarray[Any, Any], path: Path) -> dict[str, Any]:
    """Write a model and samples to a directory; options."""
    (path / "net.py").write_text(source)
    torch.save(built(source).state_dict(), path / "in.pt")
    np.savez(path / "x.npz", x=x.astype(np.float32))
    return {"calibration": path / "x.npz", "model": f"{path / 'net.py'}:build"}


@pytest.mark.parametrize(
    "more",
    [
        {"method": "wanda"},
        {"method": "sparsegpt", "refit": "layer"},
        {"method": "magnitude", "refit": "block"},
    ],
    ids=lambda more: "-".join(more.values()),
)
def test_experts_are_pruned_by_the_samples_that_reach_them(
    more: dict[str, Any], tmp_path: Path
) -> None:
    """Neither the first sample nor the first batch reaches all of them."""
    x = np.random.default_rng(0).standard_normal((36, 8))
    x[:, 0] = np.repeat([0, 1, 2], 12) + 0.5
    options = saved(EXPERTS, x, tmp_path)
    report = run(tmp_path / "in.pt", tmp_path / "out.pt", **options, **more)
    assert len(report.layers) == 6
    for row in report.layers:
        assert row.density == 0.5 and row.not_refitted is None
        assert ("refit" in more) == (row.error_after is not None)


@pytest.mark.parametrize("kind", ["layer", "block"])
def test_an_expert_that_no_sample_reaches_is_not_fitted(
    kind: str, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).standard_normal((16, 8))
    x[:, 0] = 0.5
    x[7, 0] = 1.5  # held out
    options = saved(EXPERTS, x, tmp_path)
    report = run(tmp_path / "in.pt", tmp_path / "out.pt", **options, refit=kind)
    reasons = [row.not_refitted for row in report.layers]
    assert reasons[0] is None and reasons[3] is None
    assert all(reason is not None for reason in reasons[1:3])
    assert "sample" in (reasons[1] or ""), reasons
    with pytest.raises(StepError, match=r"does not run it .* on any sample"):
        run(tmp_path / "in.pt", tmp_path / "two.pt", **options, method="wanda")


@pytest.mark.parametrize("own", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "more",
    [
        {"method": "wanda"},
        {"method": "sparsegpt", "recalibrate_bn": True},
        {"refit": "layer"},
        {"refit": "block"},
    ],
)
def test_fp64_weights_of_a_model_from_code(
    more: dict[str, Any],
    own: torch.dtype,
    resnet: tuple[Path, dict[str, Any]],
    tmp_path: Path,
) -> None:
    """Whether the code computes in fp32, or in fp64 itself."""
    source, options = resnet
    if own == torch.float64:
        code = NET.replace("return Net()", "return Net().double()")
        code = code.replace("self.stem(x)", "self.stem(x.double())")
        (tmp_path / "net.py").write_text(code)
    double = {k: x.double() if "." in k else x for k, x in torch.load(source).items()}
    torch.save(double, tmp_path / "double.pt")
    out = tmp_path / "out.pt"
    report = run(tmp_path / "double.pt", out, **options, **more)
    new = torch.load(out)
    for row in report.layers:
        kept = new[row.name] != 0
        assert new[row.name].dtype == torch.float64 and row.density == 0.5
        unchanged = torch.equal(new[row.name][kept], double[row.name][kept])
        assert unchanged == (more.get("method") == "wanda")
        if "refit" in more:
            assert row.error_after is not None and row.error_before is not None
    assert all(block.refitted for block in report.blocks)


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
