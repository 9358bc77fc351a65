"""`prune --refit` on checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands.prune.small_models import EXPERTS, NET, built, run, saved
from safetensors.torch import load_file, save_file

from step_cli import verify
from step_cli.errors import (
    InputError,
    StepError,
    UsageError,
)

METHODS = ("magnitude", "random", "wanda", "sparsegpt")


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
    x = np.random.default_rng(0).standard_normal((24, 5, 8)).astype(np.float32)
    options = saved(TIED, x, tmp_path)
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
