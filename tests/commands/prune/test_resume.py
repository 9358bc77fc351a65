"""`prune --resume` and `--device`: a stopped prune goes on as if it never stopped."""

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from step_cli.commands.prune import run as prune
from step_cli.commands.prune.calibrated import Calibrated
from step_cli.commands.prune.unfinished import unfinished_path
from step_cli.config.commands import PruneConfig
from step_cli.errors import (
    InputError,
    MissingError,
    OutputError,
    StepError,
    StoppedError,
    UsageError,
)
from step_cli.reports import PruneReport

pytest.importorskip("transformers")

from transformers import LlamaConfig, LlamaForCausalLM

BLOCKS, OF_BLOCK = 3, 7  # layers of a block


def run(source: Path, out: Path, **options: object) -> PruneReport:
    options = {"exclude": ["lm_head.*"], **options}
    return prune.run(PruneConfig(checkpoint=source, out=out, **options))  # type: ignore[arg-type]


def save_llama(path: Path, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=256, hidden_size=16, intermediate_size=32, num_hidden_layers=BLOCKS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32,
        dtype="bfloat16",
    )  # fmt: skip
    LlamaForCausalLM(config).bfloat16().save_pretrained(path)
    return path


def save_samples(path: Path, seed: int = 0) -> Path:
    tokens = np.random.default_rng(seed).integers(0, 256, (6, 12))
    np.savez(path, input_ids=tokens)
    return path


@pytest.fixture
def llama(tmp_path: Path) -> Path:
    return save_llama(tmp_path / "llama")


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    return save_samples(tmp_path / "samples.npz")


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], list[str]]:
    """Stop when so many layers are pruned; returns the layers pruned until then."""
    real = Calibrated.prune

    def stopping(count: int) -> list[str]:
        names: list[str] = []

        def counting(self: Calibrated, layer: Any, seen: Any) -> None:
            if len(names) == count:
                raise StoppedError("stopped")
            names.append(layer.name)
            real(self, layer, seen)

        monkeypatch.setattr(Calibrated, "prune", counting)
        return names

    return stopping


def rows(report: PruneReport) -> list[dict[str, Any]]:
    document = report.model_dump()
    return [*document["layers"], *document["blocks"]]


def same_files(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    return all((one / n).read_bytes() == (other / n).read_bytes() for n in names)


@pytest.mark.parametrize(
    "options",
    [
        {"method": "wanda"},
        {"method": "sparsegpt"},
        {"method": "magnitude", "refit": "layer"},
        {"method": "wanda", "refit": "block"},
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_a_resumed_prune_gives_the_bytes_of_one_that_was_never_stopped(
    options: dict[str, Any],
    llama: Path,
    samples: Path,
    tmp_path: Path,
    stop_at: Callable[[int], list[str]],
) -> None:
    given = {**options, "calibration": samples}
    whole = run(llama, tmp_path / "whole", **given)
    assert not unfinished_path(tmp_path / "whole").exists()
    out = tmp_path / "out"
    stop_at(2 * OF_BLOCK + 3)
    with pytest.raises(StoppedError):
        run(llama, out, **given)
    folder = unfinished_path(out)
    assert not out.exists()
    # Each weight, and each norm that is fitted, is kept once.
    kept = (OF_BLOCK + 2) * mmap.ALLOCATIONGRANULARITY
    assert (folder / "part-00000.arrays").stat().st_size <= kept
    # What a kill in the middle of a write leaves behind harms nothing.
    for name in ("part-00002.arrays", "part-00002.next", "part-00002.tmp"):
        (folder / name).write_bytes(b"half of it")
    pruned = stop_at(-1)
    resumed = run(llama, out, resume=True, **given)
    assert len(pruned) == OF_BLOCK  # those of the last block alone
    assert all(".layers.2." in name for name in pruned)
    assert rows(resumed) == rows(whole)
    assert same_files(tmp_path / "whole", out)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"llama", "samples.npz", "whole", "out"}


NET = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        return x + self.one(x).relu()

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(4, 8, 1)
        self.stages = nn.Sequential(Block(), nn.ReLU(), Block(), Block())
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        return self.head(self.stages(self.stem(x).relu()).mean((2, 3)))

def build():
    return Net()
"""


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_so_it_is_wherever_it_stops(
    count: int, tmp_path: Path, stop_at: Callable[[int], list[str]]
) -> None:
    """Before and after a list of blocks, and around a block without layers."""
    space: dict[str, Any] = {}
    exec(NET, space)
    torch.manual_seed(0)
    source = tmp_path / "net.safetensors"
    save_file(space["build"]().state_dict(), source)
    (tmp_path / "net.py").write_text(NET)
    x = np.random.default_rng(0).normal(size=(4, 4, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "x.npz", x=x)
    given = {
        "method": "sparsegpt",
        "calibration": tmp_path / "x.npz",
        "model": f"{tmp_path / 'net.py'}:build",
        "exclude": [],
    }
    whole, out = tmp_path / "whole.safetensors", tmp_path / "out.safetensors"
    run(source, whole, **given)
    stop_at(count)
    with pytest.raises(StoppedError):
        run(source, out, **given)
    pruned = stop_at(-1)
    run(source, out, resume=True, **given)
    assert len(pruned) == 5 - count
    assert out.read_bytes() == whole.read_bytes()


def test_other_work_is_not_gone_on_from(
    llama: Path, samples: Path, tmp_path: Path, stop_at: Callable[[int], list[str]]
) -> None:
    out, given = tmp_path / "out", {"method": "wanda", "calibration": samples}
    with pytest.raises(InputError, match="nothing to resume"):
        run(llama, out, resume=True, **given)
    stop_at(OF_BLOCK + 1)
    with pytest.raises(StoppedError):
        run(llama, out, **given)
    stop_at(-1)
    other = {
        "another option .*method is 'sparsegpt', was 'wanda'": {"method": "sparsegpt"},
        "another option .*exclude is": {"exclude": ["*.down_proj.*"]},
        "another option .*nm is '1:4', was None": {"nm": "1:4"},
        "other calibration samples": {
            "calibration": save_samples(tmp_path / "other.npz", seed=1)
        },
    }
    for told, changed in other.items():
        with pytest.raises(InputError, match=f"{told}.*: --force, no --resume"):
            run(llama, out, resume=True, **{**given, **changed})
    with pytest.raises(InputError, match="another CHECKPOINT than"):
        run(save_llama(tmp_path / "b", seed=1), out, resume=True, **given)
    with pytest.raises(OutputError, match=r"1 finished block in .*--resume .*--force"):
        run(llama, out, **given)
    assert run(llama, out, force=True, **given).ok  # starts anew
    assert not unfinished_path(out).exists()


def test_a_damaged_part_is_refused(
    llama: Path, samples: Path, tmp_path: Path, stop_at: Callable[[int], list[str]]
) -> None:
    out, given = tmp_path / "out", {"method": "wanda", "calibration": samples}
    stop_at(OF_BLOCK + 1)
    with pytest.raises(StoppedError):
        run(llama, out, **given)
    stop_at(-1)
    (unfinished_path(out) / "part-00000.arrays").write_bytes(b"short")
    with pytest.raises(InputError, match="is damaged and cannot be gone on from"):
        run(llama, out, resume=True, **given)


@pytest.mark.parametrize("force", [False, True])
def test_a_directory_of_the_users_is_never_removed(
    force: bool, llama: Path, samples: Path, tmp_path: Path
) -> None:
    """The input itself may have the name of the folder of unfinished work."""
    source = llama.rename(unfinished_path(tmp_path / "out"))
    before = sorted(path.name for path in source.iterdir())
    with pytest.raises(OutputError, match="not of a stopped prune"):
        run(
            source, tmp_path / "out", method="wanda", calibration=samples, force=force
        )  # fmt: skip
    assert sorted(path.name for path in source.iterdir()) == before


def test_an_error_that_would_come_again_leaves_nothing(
    llama: Path, samples: Path, tmp_path: Path
) -> None:
    weights = load_file(llama / "model.safetensors")
    weights["model.layers.2.mlp.up_proj.weight"][0, 0] = torch.nan
    save_file(weights, llama / "model.safetensors", {"format": "pt"})
    with pytest.raises(StepError):
        run(llama, tmp_path / "out", method="wanda", calibration=samples)
    left = {path.name for path in tmp_path.iterdir()}
    assert left == {"llama", "samples.npz"}


@pytest.mark.parametrize(
    "options", [{"resume": True}, {"device": "cuda"}], ids=["resume", "device"]
)
def test_without_samples_there_is_nothing_to_resume_or_to_run(
    options: dict[str, Any], llama: Path, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="where samples are used"):
        run(llama, tmp_path / "out", **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_a_missing_gpu_is_said_before_any_work(samples: Path, tmp_path: Path) -> None:
    given = {"method": "wanda", "calibration": samples, "device": "cuda"}
    with pytest.raises(MissingError, match="no CUDA GPU") as caught:
        run(tmp_path / "none", tmp_path / "out", **given)  # not even looked for
    assert caught.value.exit_code == 6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
def test_a_gpu_gives_what_the_cpu_gives(
    method: str, llama: Path, samples: Path, tmp_path: Path
) -> None:
    given = {"method": method, "calibration": samples}
    run(llama, tmp_path / "cpu", device="cpu", **given)
    run(llama, tmp_path / "cuda", device="cuda", **given)
    theirs = load_file(tmp_path / "cuda" / "model.safetensors")
    for name, ours in load_file(tmp_path / "cpu" / "model.safetensors").items():
        if method == "wanda":
            assert torch.equal(ours, theirs[name]), name
        else:
            step = 2.0**-8  # one rounding of bf16
            torch.testing.assert_close(ours, theirs[name], rtol=step, atol=1e-5)
