"""The loop against a plain one: optimizers, accumulation, clipping, bf16, compiling."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_run import NET, small_config
from torch import Tensor, nn
from torch.nn import functional

from step_cli.config.train import TrainConfig
from step_cli.data.load import load_data
from step_cli.data.order import batch_at
from step_cli.errors import MissingError
from step_cli.training.run import train
from step_cli.training.trainer import lr_at

STEPS = 8
SHORT = (f"train.steps={STEPS}", "switch.t_max=5")
OPTIMIZERS = {
    "adamw": torch.optim.AdamW,
    "adam": torch.optim.Adam,
    "sgd": torch.optim.SGD,
}


def plain_loop(config: TrainConfig) -> dict[str, Tensor]:
    """What anybody would write, without step-cli's optimizer and loop."""
    settings = config.train
    torch.manual_seed(settings.seed)
    scope: dict[str, Any] = {}
    exec(NET, scope)
    model = scope["build"]()
    own = {"momentum": settings.momentum} if settings.optimizer == "sgd" else {
        "betas": settings.betas, "eps": settings.eps,
    }  # fmt: skip
    optimizer = OPTIMIZERS[settings.optimizer](
        model.parameters(), settings.lr, weight_decay=settings.weight_decay, **own
    )
    data = load_data(config.data)
    parts = settings.grad_accumulation
    for step in range(1, settings.steps + 1):
        optimizer.param_groups[0]["lr"] = lr_at(step, settings)
        for part in range(parts):
            batch = batch_at(data.train, index=(step - 1) * parts + part,
                             size=settings.batch_size, seed=settings.seed)  # fmt: skip
            bf16 = settings.precision == "bf16"
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                scores = model(*batch.inputs.values())
            loss = functional.cross_entropy(scores.float(), batch.labels) / parts
            loss.backward()
        if settings.grad_clip:
            clip(model, settings.grad_clip)
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()  # type: ignore[no-any-return]


def clip(model: nn.Module, most: float) -> None:
    """``torch.nn.utils.clip_grad_norm_``, in fp64."""
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    norm = torch.cat([grad.double().flatten() for grad in grads]).norm()
    for grad in grads:
        grad.mul_(min(1.0, (most / (norm + 1e-6)).float().item()))


def trained(config: TrainConfig, run_dir: Path) -> dict[str, Tensor]:
    shutil.rmtree(run_dir, ignore_errors=True)
    train(config, run_dir)
    return load_file(run_dir / "model" / "model.safetensors")


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    "more",
    [
        (),
        ("train.grad_accumulation=3",),
        ("train.grad_clip=0.05",),
        ("train.precision=bf16",),
        ("train.grad_accumulation=2", "train.grad_clip=0.05", "train.precision=bf16"),
    ],
    ids=["plain", "accumulated", "clipped", "bf16", "all"],
)
def test_a_dense_run_is_a_plain_loop(
    tmp_path: Path, optimizer: str, more: tuple[str, ...]
) -> None:
    decay = "train.weight_decay=" + ("0" if optimizer == "adam" else "0.1")
    dense = ("sparsity.recipe=dense", f"train.optimizer={optimizer}", decay)
    config = small_config(tmp_path, *SHORT, *dense, *more)
    found = trained(config, tmp_path / "run")
    assert same(found, plain_loop(config))
    if more:  # and the option does something
        assert not same(found, plain_loop(small_config(tmp_path, *SHORT, *dense)))


def test_a_compiled_run_ends_where_one_does_that_is_not(tmp_path: Path) -> None:
    from step_cli.optim.compiled import can_compile

    if not can_compile():
        pytest.skip("torch.compile finds no compiler")
    plain = trained(small_config(tmp_path, *SHORT), tmp_path / "plain")
    config = small_config(tmp_path, *SHORT, "train.compile=true")
    compiled = trained(config, tmp_path / "compiled")
    torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=1e-3)
    assert compiled.keys() == plain.keys()  # no wrapper's names


def test_no_compiler_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "step_cli.training.wrapping.can_compile"
    monkeypatch.setattr(name, lambda: False)
    with pytest.raises(MissingError, match="needs a C\\+\\+ compiler"):
        train(small_config(tmp_path, "train.compile=true"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
