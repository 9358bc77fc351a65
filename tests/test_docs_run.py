"""The commands of the documents run, in folders that hold what they name.

README.md, docs/tutorial.md and docs/serving.md have tests of their own, which compare
outputs too; those of docs/ci.md and docs/compare.md with an output as well.
"""

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from test_ci_docs import write_examples
from test_docs_shown import blocks, commands

torch = pytest.importorskip("torch")

ROOT = Path(__file__).parents[1]
CONFIG = "sample_models/digits-resnet/config.toml"
SHORT = ("--set", "train.steps=20", "--set", "train.warmup_steps=2",
         "--set", "train.eval_every=20", "--set", "switch.criterion=fixed",
         "--set", "switch.step=0.5")  # fmt: skip
NOT_RUN = {
    "torchrun --nnodes 4": "needs four machines",
    "torchrun --nproc-per-node 8": "needs eight GPUs",
    "--backend tensorrt ": "needs TensorRT and a GPU",
    "stdlib-gpt/config.toml": "trains for minutes; its configuration is a test's",
}
FAILS = ("bad.safetensors", "mixed.safetensors --min-coverage", "model.onnx --target")
NET = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16)
        self.b, self.c = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 8, 3)

    def forward(self, x):
        return self.c(torch.relu(self.b(torch.relu(self.norm(self.a(x))))))

def build():
    return Net()
"""


def step_cli(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    own = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    return subprocess.run(
        [sys.executable, "-m", "step_cli", *words],
        cwd=folder, env=own, capture_output=True, text=True, check=False,
    )  # fmt: skip


def succeed(folder: Path, *words: str) -> None:
    done = step_cli(folder, *words)
    assert done.returncode == 0, done.stderr


def trained(folder: Path, *runs: str) -> None:
    """Short runs of the digits sample, and its samples as calibration."""
    (folder / "sample_models").symlink_to(ROOT / "sample_models")
    shutil.copy(ROOT / CONFIG, folder / "digits.toml")
    for run in runs:
        succeed(folder, "train", CONFIG, *SHORT, "--run-dir", run)
    images = np.random.default_rng(0).random((16, 1, 8, 8), np.float32)
    np.savez(folder / "x.npz", pixels=images)


def for_export(folder: Path) -> None:
    trained(folder, "runs/digits-resnet")


def for_runs(folder: Path) -> None:
    trained(folder, "runs/digits")
    for name, more in (
        ("digits.onnx", ()),
        ("digits-int8.onnx", ("--quantize", "int8", "--calibration", "x.npz")),
    ):
        succeed(folder, "export", "runs/digits", name, "--to", "onnx", *more)
    for file in (folder / "runs/digits/model").iterdir():  # `verify-nm .` runs there
        shutil.copy(file, folder)


def for_prune(folder: Path) -> None:
    from quantized_models import mlp

    llama(folder / "Llama")
    text = "A group of four weights keeps two of them. " * 400
    (folder / "text.txt").write_text(text)
    (folder / "net.py").write_text(NET)
    names: dict[str, object] = {}
    exec(NET, names)
    build = names["build"]
    assert callable(build)
    torch.save(build().state_dict(), folder / "net.pt")
    images = np.random.default_rng(0).random((16, 3, 32, 32), np.float32)
    np.savez(folder / "x.npz", x=images)
    sparse_file(folder / "model.safetensors", dense=True)
    calibrated(folder, mlp(folder / "model.onnx"))


def calibrated(folder: Path, given: np.ndarray) -> None:
    """`model.int8.onnx`, as ONNX Runtime's quantizer writes it."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc, unused-ignore]
        def __init__(self) -> None:
            self.left = [{"x": given}]

        def get_next(self) -> dict[str, np.ndarray] | None:
            return self.left.pop() if self.left else None

    quantize_static(folder / "model.onnx", folder / "model.int8.onnx", Reader())


def llama(folder: Path) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=256, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=64, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)


def sparse_file(path: Path, *, dense: bool = False) -> None:
    from safetensors.numpy import save_file
    from test_ci_docs import sparse

    random = np.random.default_rng(0)
    weight = random.normal(size=(32, 16)).astype(np.float16)
    save_file({"fc1.weight": weight if dense else sparse((32, 16), 1)}, path)


def for_ci(folder: Path) -> None:
    from quantized_models import mlp

    write_examples(folder)
    (folder / "models").mkdir()
    for name in ("model", "pruned", "tuned", "models/a"):
        sparse_file(folder / f"{name}.safetensors")
    mlp(folder / "models" / "dense.onnx")
    succeed(folder, "prune", "models/dense.onnx", "models/b.onnx")
    (folder / "models" / "dense.onnx").unlink()
    llama(folder / "dense")
    for out in ("models/llama", "model"):
        succeed(folder, "prune", "dense", out, "--exclude", "lm_head.*")


def for_targets(folder: Path) -> None:
    from quantized_models import mlp

    mlp(folder / "model.onnx")


def for_lightning(folder: Path) -> None:
    weight = torch.tensor([[0.0, 1, 0, 2] * 4] * 8)
    torch.save({"state_dict": {"fc.weight": weight}}, folder / "last.ckpt")


def nothing(folder: Path) -> None:
    (folder / "sample_models").symlink_to(ROOT / "sample_models")


SETUPS: dict[str, Callable[[Path], None]] = {
    "autoswitch.md": nothing,
    "ci.md": for_ci,
    "compare.md": nothing,
    "export.md": for_export,
    "prune.md": for_prune,
    "python.md": for_lightning,
    "samples.md": nothing,
    "scale.md": nothing,
    "training-run.md": for_runs,
    "why-dense.md": for_targets,
}
ELSEWHERE = ("tutorial.md", "serving.md", "commands.md")


def shown(page: str) -> list[str]:
    text = ROOT / "docs" / page
    return [line for block in blocks(text) for line in commands(block)]


def as_a_shell_gives(command: str, folder: Path) -> list[str]:
    """The words after the program, with patterns of paths replaced by the paths."""
    words = []
    for word in shlex.split(command, comments=True)[1:]:
        found = sorted(folder.glob(word)) if "*" in word else []
        words += [str(path.relative_to(folder)) for path in found] or [word]
    return words


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def is_run(command: str) -> bool:
    general = command.startswith("step-cli --")
    return not general and not any(words in command for words in NOT_RUN)


def test_every_page_with_commands_is_run() -> None:
    pages = {path.name for path in (ROOT / "docs").glob("*.md") if shown(path.name)}
    assert pages - {*ELSEWHERE} == {*SETUPS}
    told = [line for page in SETUPS for line in shown(page)]
    assert all(any(words in line for line in told) for words in NOT_RUN)


@pytest.mark.slow
@pytest.mark.tensorrt
@pytest.mark.parametrize("page", SETUPS)
def test_the_commands_of_a_page_run(page: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    SETUPS[page](tmp_path)
    for command in filter(is_run, shown(page)):
        words = as_a_shell_gives(command, tmp_path)
        if words[0] == "prune":  # the examples are alternatives, with one OUT
            remove(tmp_path / words[2])
            remove(tmp_path / f"{words[2]}.nm_plan.json")
        done = step_cli(tmp_path, *words)
        expected = 1 if any(said in command for said in FAILS) else 0
        assert done.returncode == expected, f"{command}\n{done.stdout}{done.stderr}"
