"""What each of two processes does that train together; the tests judge the outcome."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import undrawn
from stopped_run import stopping_at
from torch import nn
from training.told_trackers import FAKES, Runs

from step_cli.config.train import load_config
from step_cli.data.batch import IGNORED, Dataset, TensorSplit
from step_cli.errors import StepError, StoppedError
from step_cli.optim.shards import is_shard, local
from step_cli.training import page
from step_cli.training import run as run_module
from step_cli.training.distributed import Kind, Processes
from step_cli.training.run import train_in
from step_cli.training.setup import set_up, training_batch


def processes(kind: Kind) -> Processes:
    """The processes of the test, or this one alone."""
    if kind == "none":
        return Processes(torch.device("cpu"))
    return Processes(torch.device("cpu"), kind, dist.get_rank(), dist.get_world_size())


def train_one(
    kind: Kind,
    config: Path,
    overrides: list[str],
    run_dir: Path,
    *,
    resume: bool = False,
    stop_at: int = 0,
    stopping_rank: int = 0,
    forget_random_state: bool = False,
) -> Any:
    """Train; the report, or how and with which exit code it ended."""
    here = processes(kind)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(page, "draw_curves", undrawn.draw_curves)
        if stop_at and here.rank == stopping_rank:
            loop = stopping_at(stop_at, 15)
            patch.setattr(run_module.Trainer, "run", loop)
        if forget_random_state:
            name = "step_cli.training.process_state.restore_random_states"
            patch.setattr(name, lambda states, device: None)
        if "tokens" in overrides:
            patch.setattr("step_cli.training.setup.load_data", lambda section: TOKENS)
            overrides = [word for word in overrides if word != "tokens"]
        settings = load_config(config, overrides)
        try:
            report = train_in(here, settings, run_dir, force=False, resume=resume)
        except (StepError, StoppedError) as error:
            # In a process of its own the failure would end the others too.
            return type(error).__name__, str(error), error.exit_code
    return report.model_dump() if here.first else None


def teacher_of(kind: Kind, config: Path, overrides: list[str]) -> Any:
    """Whether each of a teacher's weights is a share, what it gives, and its digest."""
    here = processes(kind)
    setup = set_up(load_config(config, overrides), here, record=False)
    teacher = setup.teacher
    assert teacher is not None
    weights = [*teacher.model.parameters()]
    batch = training_batch(load_config(config, overrides), setup.data, here, 0)
    shares = [is_shard(weight) for weight in weights]
    whole = sum(weight.numel() for weight in weights)
    held = sum(local(weight).numel() for weight in weights)
    with torch.no_grad():
        scores = teacher.scores(batch, here.device)
    return shares, held / whole, scores, teacher.sha256


def _tokens(samples: int, seed: int) -> TensorSplit:
    """Sentences of 1 to 8 tokens, so that halves of a batch score unlike many."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randint(0, 16, (samples, 8), generator=generator)
    labels = (inputs * 3 + 1) % 16
    lengths = torch.randint(1, 9, (samples, 1), generator=generator)
    return TensorSplit(
        {"tokens": inputs}, torch.where(torch.arange(8) < lengths, labels, IGNORED)
    )


TOKENS = Dataset(_tokens(64, 0), _tokens(21, 1))


def build_tagger() -> nn.Module:
    return nn.Sequential(
        nn.Embedding(16, 8), nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 16)
    )


def train_one_as(*arguments: Any) -> Any:
    """`train_one`, its options as one dictionary."""
    *plain, options = arguments
    return train_one(*plain, **options)


def train_tracked(config: Path, overrides: list[str], run_dir: Path) -> list[int]:
    """Train with a stand-in for wandb; the last step that each of its runs heard of."""
    runs: Runs = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_MODE", raising=False)
        patch.setitem(sys.modules, "wandb", FAKES["wandb"](runs)["wandb"])
        train_one("ddp", config, overrides, run_dir)
    return [max(told.numbers["train/loss"]) for told in runs.values()]
