"""`prune --recalibrate-bn`: running statistics of the pruned network."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands.prune.small_models import NET, built, run
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from step_cli.errors import (
    InputError,
    NonFiniteError,
    NothingSelectedError,
)


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
