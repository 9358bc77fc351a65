"""Rows of `train`: what ends it, with which code, and what is left to go on from."""

import errno
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from stopped_run import stopping_at  # noqa: E402

from step_cli.errors import OutputError, StoppedError  # noqa: E402
from step_cli.formats.open import open_checkpoint  # noqa: E402
from step_cli.training import checkpoints, records  # noqa: E402
from step_cli.training import run as run_module  # noqa: E402

HERE = Path(__file__)
# Rows with tests that lie beside what they test.
ELSEWHERE = {
    "T11": ["test_stopped_at_random_steps", "test_killed_while_saving"],
    "T15": [
        "test_a_missing_library_is_told_at_the_start",
        "test_events_that_cannot_be_written_are_said_once_and_training_goes_on",
    ],
    "T16": [
        "test_mistakes_are_told_with_the_file_they_are_in",
        "test_an_image_that_breaks_during_training_is_told",
        "test_a_training_split_smaller_than_a_batch_is_told",
        "test_code_of_a_directory_is_never_run",
    ],
    "T17": ["test_a_model_of_the_user_is_trained"],
    "T18": ["test_an_error_is_told_once_and_ends_all"],
    "T20": [
        "test_no_such_teacher",
        "test_a_teacher_of_something_else_is_refused",
        "test_a_teacher_that_is_not_finite_is_refused",
        "test_another_teacher_is_refused",
        "test_a_teacher_that_shares_weights_with_the_student_is_refused",
    ],
    "T21": ["test_a_run_is_not_replaced_by_one_that_reads_it"],
    "T22": [
        "test_other_inputs_are_told",
        "test_inputs_that_the_graph_lacks_are_told",
        "test_graphs_that_cannot_be_measured",
        "test_memory_that_runs_out_is_no_misfit",
    ],
}

NET = """
import os, signal
from pathlib import Path

import torch
from torch import nn

(Path(__file__).parent / "was-run").write_text("")

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 12))

class Spoiled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, bad):
        ctx.bad = bad
        return x.clone()
    @staticmethod
    def backward(ctx, grad):
        return (grad * float("nan") if ctx.bad else grad), None

class Bad(nn.Module):
    def __init__(self, what, step):
        super().__init__()
        self.net, self.what, self.step, self.taken = build(), what, step, 0
    def forward(self, x):
        self.taken += self.training
        bad = self.training and self.taken == self.step
        scores = Spoiled.apply(self.net(x), bad and self.what == "gradient")
        if bad and self.what == "loss":
            return scores * float("nan")
        if bad and self.what == "memory":
            return torch.empty(1 << 60)
        if bad and self.what == "leave":
            raise SystemExit(3)
        if self.what == "table":
            return {"logits": scores}
        if self.what == "apart":
            return scores.detach()
        return scores

def bad(what, step=7):
    return Bad(what, step)

def stopped_by(name):
    os.kill(os.getpid(), getattr(signal, name))
    return build()

def leaving():
    raise SystemExit(0)

def lazy():
    return nn.Sequential(nn.Flatten(), nn.LazyLinear(12))

def frozen(all):
    net = build()
    net[1].weight.requires_grad_(False)
    for p in net.parameters():
        p.requires_grad_(p.requires_grad and not all)
    return net
"""
CONFIG = """
[model]
source = "net.py:build"
[data]
source = "digits"
[train]
steps = 12
batch_size = 16
betas = [0.9, 0.8]
log_every = 3
eval_every = 6
checkpoint_every = 4
[switch]
eps = 1e-30
t_min = 2
t_max = 5
"""
Train = Callable[..., Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(NET)
    (tmp_path / "c.toml").write_text(CONFIG)
    return tmp_path


@pytest.fixture
def train(folder: Path, step_cli: Train) -> Train:
    """Run `train`; the code and the words of its one error line are as promised."""

    def run(*words: object, code: int = 0, said: str = "") -> Any:
        given = [("--set", w) if "=" in str(w) else (w,) for w in words]
        flat = [word for each in given for word in each]
        config, run_dir = folder / "c.toml", folder / "run"
        outcome = step_cli("train", config, "--run-dir", run_dir, *flat)
        assert outcome.code == code, outcome.err
        if code > 1:
            assert re.search(said, outcome.error), outcome.error
        else:
            assert re.search(said, outcome.err + outcome.out)
        return outcome

    return run


def saved(folder: Path) -> list[int]:
    """The steps of the checkpoints that are there."""
    found = (folder / "run" / "checkpoints").glob("step-*")
    return sorted(int(path.name.removeprefix("step-")) for path in found)


def model_of(folder: Path) -> bytes:
    return (folder / "run" / "model" / "model.safetensors").read_bytes()


@pytest.fixture
def interrupted(train: Train, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Path:
    """A run that was stopped after step 10; step 8 is there too."""
    with monkeypatch.context() as patch:
        patch.setattr(run_module.Trainer, "run", stopping_at(10, signal.SIGTERM))
        train(code=75, said="stopped at step 10, go on with --resume")
    assert saved(folder) == [8, 10]
    return folder / "run"


@pytest.mark.parametrize("row", ELSEWHERE)
def test_rows_tested_elsewhere_are_there(row: str) -> None:
    texts = [path.read_text() for path in HERE.parents[1].rglob("test_*.py")]
    for name in ELSEWHERE[row]:
        assert any(f"def {name}(" in text for text in texts), name


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        (None, 4, "no such file"),
        ("[train\n", 2, r"not TOML: .*line 1"),
        (CONFIG + "[train]\nsteps = 3\n", 2, r"not TOML: .*line \d+, column"),
        ("a = " + "[" * 9999 + "]" * 9999, 2, "nested too deeply"),
        ("", 2, "model is missing"),
    ],
)
def test_T01_a_configuration_that_cannot_be_read(
    train: Train, folder: Path, text: str | None, code: int, said: str
) -> None:
    path = folder / "c.toml"
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    train(code=code, said=f"c.toml: {said}")
    assert not (folder / "run").exists()


def test_a_configuration_that_begins_with_a_mark_of_its_encoding(
    train: Train, folder: Path
) -> None:
    (folder / "c.toml").write_text(CONFIG, encoding="utf-8-sig")
    train()


@pytest.mark.parametrize("in_file", [True, False])
def test_T02_an_unknown_key(train: Train, folder: Path, in_file: bool) -> None:
    path, said = folder / "c.toml", "unknown key switch.t_mn; did you mean t_min"
    if in_file:
        path.write_text(CONFIG + "t_mn = 3\n")
    train(*([] if in_file else ["switch.t_mn=3"]), code=2, said=said)
    assert not (folder / "run").exists()


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("train.betas=[0.9, 1.0]", "train.betas: expected less than 1"),
        ("train.lr=0", "train.lr: expected greater than 0"),
        ("train.lr=nan", "train.lr: expected a finite number"),
        ("train.steps=0", "train.steps: expected greater than or equal to 1"),
        ("train.steps=true", "train.steps: expected a number, got true"),
        ("train.warmup_steps=13", "warmup_steps 13 exceeds steps 12"),
        ("sparsity.pattern=5:4", "sparsity.pattern: expected N:M such as 2:4"),
        ("switch.t_min=6", "switch.t_min 6 lies after switch.t_max 5"),
        ("switch.t_max=13", ""),
        ("switch.step=13", "switch.step 13 is never reached in 12 steps"),
        ("model.options.when=2026-01-01", "or a finite number, got 2026-01-01"),
        ("model.options.x=[1, {a = inf}]", "or a finite number, got inf"),
    ],
)
def test_T03_a_value_out_of_its_range(
    train: Train, folder: Path, wrong: str, said: str
) -> None:
    more = ["switch.t_min=12"] if wrong == "switch.t_max=13" else []
    train(wrong, *more, code=2, said=said or "switch.t_min 12 is not before steps 12")
    assert not (folder / "run").exists()
    assert not (folder / "was-run").exists()  # before the model is built


@pytest.mark.parametrize("option", ["eps_mode", "v_correction"])
def test_T03_a_mode_that_there_is_not(train: Train, folder: Path, option: str) -> None:
    wrong = f"sparsity.options.{option}=middle"
    train(wrong, code=2, said=f"no {option} 'middle'; ")
    assert not (folder / "run").exists()


def test_T04_no_weight_is_selected(train: Train, folder: Path) -> None:
    train('sparsity.include=["1.wieght"]', code=3, said="nearest: .*1.weight")
    train('sparsity.exclude=["*"]', code=3, said="no layer of the model can hold 2:4")
    frozen = [f"model.source={folder}/net.py:frozen", "model.options.all=true"]
    train(*frozen, code=3, said="no parameter of the model requires gradients")
    assert not (folder / "run").exists()


def test_a_weight_that_does_not_train_stays_dense(train: Train, folder: Path) -> None:
    said = "1.weight stays dense: its requires_grad is False"
    net = folder / "net.py"
    train(f"model.source={net}:frozen", "model.options.all=false", said=said)
    plan = open_checkpoint(folder / "run").plan
    assert plan is not None and list(plan) == ["3.weight"]


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_T05_what_is_not_finite_is_never_saved(
    train: Train, folder: Path, what: str
) -> None:
    net = folder / "net.py"
    words = [f"model.source={net}:bad", f"model.options.what={what}"]
    words += ["train.checkpoint_every=1", "train.keep=20"]
    train(*words, code=7, said=r"step [78]: ")
    assert saved(folder)[-1] == 6
    for kind in ("model", "optimizer"):
        for path in (folder / "run").rglob(f"{kind}.safetensors"):
            for tensor in open_checkpoint(path).tensors:
                assert np.isfinite(tensor.read()).all(), path
    assert not (folder / "run" / "model").exists()


def test_T06_the_switch_is_never_reached(train: Train, folder: Path) -> None:
    done = train("switch.t_max=1.0", code=1)
    told = " ".join(done.out.split())
    assert re.search("never reached in 12 steps .* against 1e-30; its lowest", told)
    assert saved(folder) and not (folder / "run" / "model").exists()


def test_T07_nothing_to_resume(train: Train, folder: Path) -> None:
    train("--resume", code=4, said="nothing to resume: no such run directory")
    assert not (folder / "run").exists()
    (folder / "run").mkdir()
    train("--resume", code=4, said="nothing to resume: no run was begun here")
    assert list((folder / "run").iterdir()) == []


def test_T08_an_incomplete_checkpoint_is_passed_over(
    train: Train, interrupted: Path, folder: Path
) -> None:
    (interrupted / "checkpoints/step-00000010/state.json").unlink()
    train("--resume", said="warning: step-00000010 is incomplete, going on from step-0")
    cut = model_of(folder)
    train("--force")
    assert model_of(folder) == cut
    for path in interrupted.glob("checkpoints/*/state.json"):
        path.unlink()
    train("--resume", code=4, said="nothing to resume: no complete checkpoint")


def test_T09_another_run_is_not_gone_on_with(train: Train, interrupted: Path) -> None:
    said = "switch.t_max is 6, was 5; train.lr is 0.5, was 0.001"
    train("--resume", "train.lr=0.5", "switch.t_max=6", code=4, said=said)
    state = interrupted / "checkpoints/step-00000010/state.json"
    kept = state.read_text()
    for key, other in (("torch", "1.0"), ("world_size", 4), ("parallel", "fsdp")):
        state.write_text(json.dumps(json.loads(kept) | {key: other}))
        train("--resume", code=4, said=f"{key} is .*, was {other}")
    state.write_text(kept)
    data = interrupted / "data.json"
    data.write_text(re.sub(r'"sha256": "..', '"sha256": "zz', data.read_text()))
    train("--resume", code=4, said="not the data the run began with")


@pytest.mark.parametrize("kind", ["model", "optimizer", "random"])
def test_T10_a_changed_checkpoint(train: Train, interrupted: Path, kind: str) -> None:
    file = interrupted / f"checkpoints/step-00000010/{kind}.safetensors"
    raw = bytearray(file.read_bytes())
    for damage in (raw[:-1], raw[:-1] + bytes([raw[-1] ^ 1])):
        file.write_bytes(damage)
        train("--resume", code=4, said=f"{kind}.safetensors: sha256 differs")
    file.unlink()
    train("--resume", code=4, said=f"{kind}.safetensors: no such file")


@pytest.mark.parametrize(
    ("name", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130)]
)
def test_T12_a_signal_ends_the_run_after_its_step(
    train: Train, folder: Path, name: str, code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    number = getattr(signal, name)
    with monkeypatch.context() as patch:
        patch.setattr(run_module.Trainer, "run", stopping_at(1, number))
        train(code=code, said="stopped at step 1, go on with --resume")
    assert saved(folder) == [1]
    train("--resume")


@pytest.mark.parametrize(
    ("name", "code"), [("SIGTERM", 75), ("SIGUSR1", 75), ("SIGINT", 130)]
)
def test_T12_a_signal_before_the_first_step(folder: Path, name: str, code: int) -> None:
    words = ["train", "c.toml", "--set", f"model.source={folder}/net.py:stopped_by"]
    words += ["--set", f"model.options.name={name}"]
    done = forks.run(
        [sys.executable, "-m", "step_cli", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert "nothing written" in done.stderr and "Traceback" not in done.stderr
    assert not (folder / "runs").exists()


def test_T12_a_second_signal_ends_it_at_once(
    train: Train, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(self: Any, stop: Any) -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        raise AssertionError

    with monkeypatch.context() as patch:
        patch.setattr(run_module.Trainer, "run", run)
        train(code=75, said="stopped at once, within a step")
    assert not (folder / "run").exists()  # there is nothing to go on from


@pytest.mark.parametrize("error", [StoppedError("now"), KeyboardInterrupt()])
def test_T12_a_signal_while_results_are_written(
    train: Train, folder: Path, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finish(*given: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "finish", finish)
        code = 75 if isinstance(error, StoppedError) else 130
        train("train.checkpoint_every=99", code=code, said="before its results were")
    assert saved(folder) == [12]
    train("train.checkpoint_every=99", "--resume")
    cut = model_of(folder)
    train("train.checkpoint_every=99", "--force")
    assert model_of(folder) == cut


@pytest.mark.parametrize("full", ["disk", "limit", "space"])
def test_T13_a_checkpoint_that_cannot_be_saved_costs_no_other(
    train: Train, folder: Path, full: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = checkpoints.save_process_state, []

    def write(*given: Any) -> Any:
        calls.append(given)
        if len(calls) == 2 and full != "space":
            code = {"disk": errno.ENOSPC, "limit": errno.EDQUOT}[full]
            raise OSError(code, os.strerror(code))
        return real(*given)

    def usage(place: Path) -> Any:
        free = 1000 if calls and full == "space" else 1 << 40
        return type("Usage", (), {"free": free})

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "save_process_state", write)
        patch.setattr("step_cli.formats.files.staged.shutil.disk_usage", usage)
        words = "no space left: needs .* KiB, 1000 bytes free"
        said = {"disk": "no space left", "limit": "quota", "space": words}[full]
        train("train.keep=1", code=5, said=said)
    assert saved(folder) == [4]
    assert [path.name for path in (folder / "run/checkpoints").iterdir()] == [
        "step-00000004"
    ]
    train("train.keep=1", "--resume")
    cut = model_of(folder)
    train("train.keep=1", "--force")
    assert model_of(folder) == cut


def test_T14_records_torn_by_a_crash(
    train: Train, interrupted: Path, folder: Path
) -> None:
    names = ("metrics.jsonl", "variance.jsonl", "layers.jsonl")
    for name in names:
        text = (interrupted / name).read_text()
        (interrupted / name).write_text(text + text.splitlines()[-1][:-5])
    train("--resume")
    cut = [(interrupted / name).read_bytes() for name in names]
    train("--force")
    assert [(interrupted / name).read_bytes() for name in names] == cut


@pytest.mark.parametrize(
    ("record", "t_max"), [("metrics", 5), ("variance", 8), ("layers", 5)]
)
def test_T14_records_that_cannot_be_written_stop_the_run(
    train: Train, folder: Path, record: str, t_max: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = records.JsonLines.write

    def write(self: records.JsonLines, line: str) -> None:
        if record in self._file.name and json.loads(line).get("step", 0) >= 6:
            raise OutputError("no space left on device", file=self._file.name)
        real(self, line)

    with monkeypatch.context() as patch:
        patch.setattr(records.JsonLines, "write", write)
        train(f"switch.t_max={t_max}", code=5, said=rf"{record}.jsonl: no space left")
    reached = saved(folder)[-1]
    assert reached >= 6 and reached % 4  # saved for this, and not when it was due
    train(f"switch.t_max={t_max}", "--resume")
    cut = model_of(folder)
    train(f"switch.t_max={t_max}", "--force")
    assert model_of(folder) == cut


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["source=leaving"], 4, "raised SystemExit: 0"),
        (["source=lazy"], 4, "1.weight has no shape yet"),
        (["source=bad", "what=leave"], 4, "does not fit the data: SystemExit: 3"),
        (["source=bad", "what=apart"], 4, "scores do not depend on weights"),
        (["source=bad", "what=table"], 0, ""),
    ],
)
def test_T17_what_a_model_of_the_user_may_do(
    train: Train, folder: Path, words: list[str], code: int, said: str
) -> None:
    source = words[0].removeprefix("source=")
    given = [f"model.source={folder}/net.py:{source}"]
    train(*given, *(f"model.options.{word}" for word in words[1:]), code=code,
          said=said)  # fmt: skip


def test_T19_memory_runs_out(train: Train, folder: Path) -> None:
    words = [f"model.source={folder}/net.py:bad", "model.options.what=memory"]
    said = r"not enough memory \(.* wanted\) for train.batch_size 16: .* raise grad_acc"
    train(*words, code=6, said=said)
    assert saved(folder) == [4]


def test_T19_processes_that_are_not_there(train: Train, folder: Path) -> None:
    train("train.parallel=fsdp", code=6, said="start with torchrun")
    assert not (folder / "run").exists()
