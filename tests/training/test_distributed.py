"""Two processes train what one does, and go on where they were stopped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from integration.ranks import Ranks
from safetensors.torch import load_file
from training import parallel_work as work

from step_cli import verify
from step_cli.config.samples import sample_directory
from step_cli.config.train import load_config
from step_cli.errors import InputError
from step_cli.training.run import train

CONFIG = sample_directory("digits-resnet") / "config.toml"
KINDS = ["ddp", "fsdp"]
STEPS, SWITCH = 14, 7
RESULTS = ("model/model.safetensors", "metrics.jsonl", "variance.jsonl", "layers.jsonl")

# Without what makes processes differ; the blocks are split one by one.
PLAIN = """
from torch import nn

def build():
    layers = [nn.Flatten(), nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 12)]
    return nn.Sequential(*layers)
"""
# With it: numbers drawn at every step, and statistics of the own share of a batch.
NOISY = PLAIN.replace("nn.Tanh()", "nn.BatchNorm1d(24), nn.Tanh(), nn.Dropout(0.3)")


def configured(folder: Path, net: str, *more: str) -> list[str]:
    (folder / "net.py").write_text(net)
    return [
        f"model.source={folder / 'net.py'}:build", f"train.steps={STEPS}",
        "train.batch_size=16", "train.warmup_steps=3", "train.log_every=3",
        "train.eval_every=5", "train.checkpoint_every=4", "train.betas=[0.9, 0.8]",
        "sparsity.exclude=[]", "switch.eps=1e-30", "switch.t_min=2",
        f"switch.t_max={SWITCH - 1}", *more,
    ]  # fmt: skip


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return load_file(run_dir / "model" / "model.safetensors")


def same_results(one: Path, other: Path) -> list[str]:
    """The files that differ."""
    return [n for n in RESULTS if (one / n).read_bytes() != (other / n).read_bytes()]


# ------------------------------------------------------------------ as one process does


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("train.grad_accumulation=2", "train.grad_clip=0.1"),
        ("train.optimizer=sgd", "sparsity.recipe=sr-ste"),
        ("train.optimizer=adam", "train.weight_decay=0",
         "sparsity.recipe=asp", "switch.step=5"),
        ("sparsity.recipe=domino-search", "sparsity.options.density=0.7"),
    ],
    ids=["step", "accumulated-and-clipped", "sgd", "adam", "own-patterns"],
)  # fmt: skip
def test_two_processes_train_what_one_does(
    ranks: Ranks, kind: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    overrides = configured(tmp_path, PLAIN, *options)
    alone, both = tmp_path / "alone", tmp_path / "both"
    expected = train(load_config(CONFIG, overrides), alone)
    found, _ = ranks.run(work.train_one, kind, CONFIG, overrides, both)
    switch = None if expected.switch is None else expected.switch.model_dump()
    assert found["switch"] == switch
    assert (found["parallel"], found["processes"]) == (kind, 2)
    for metrics in ("metrics", "dense_metrics"):
        assert found[metrics] == pytest.approx(getattr(expected, metrics), abs=1e-4)
    torch.testing.assert_close(weights(both), weights(alone), atol=1e-5, rtol=1e-4)
    assert verify(both).ok and found["density"] == expected.density
    left = {path.name for path in both.iterdir()}
    assert left == {path.name for path in alone.iterdir()}


@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_those_of_one_process_that_sums_as_they_do(
    ranks: Ranks, kind: str, tmp_path: Path
) -> None:
    overrides = configured(tmp_path, PLAIN, "train.grad_clip=0.1")
    halves = [*overrides, "train.batch_size=8", "train.grad_accumulation=2"]
    train(load_config(CONFIG, halves), tmp_path / "alone")
    ranks.run(work.train_one, kind, CONFIG, overrides, tmp_path / "both")
    alone, both = weights(tmp_path / "alone"), weights(tmp_path / "both")
    assert all(torch.equal(both[name], alone[name]) for name in alone)


@pytest.mark.parametrize("kind", KINDS)
def test_processes_that_score_unlike_many_tokens(
    ranks: Ranks, kind: str, tmp_path: Path
) -> None:
    more = ("model.source=training.parallel_work:build_tagger", "tokens")
    overrides = configured(tmp_path, PLAIN, *more)
    expected = work.train_one("none", CONFIG, overrides, tmp_path / "1")
    found, _ = ranks.run(work.train_one, kind, CONFIG, overrides, tmp_path / "2")
    assert found["metrics"] == pytest.approx(expected["metrics"], abs=1e-5)
    torch.testing.assert_close(weights(tmp_path / "2"), weights(tmp_path / "1"))


# ------------------------------------------------------------------- stopping, going on


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("step", [3, SWITCH - 1, SWITCH])
def test_processes_that_were_stopped_end_with_the_same_bits(
    ranks: Ranks, kind: str, step: int, tmp_path: Path
) -> None:
    overrides = configured(tmp_path, NOISY)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    ranks.run(work.train_one, kind, CONFIG, overrides, whole)

    def go(**more: Any) -> list[Any]:
        return ranks.run(work.train_one_as, kind, CONFIG, overrides, cut, more)

    # A request is known to all one step later.
    stopped = ("StoppedError", f"stopped at step {step + 1}, go on with --resume", 75)
    assert go(stop_at=step, stopping_rank=1) == [stopped, stopped]
    assert not (cut / "model").exists()
    go(resume=True)
    assert same_results(whole, cut) == []


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_random_states_the_bits_differ(
    ranks: Ranks, kind: str, tmp_path: Path
) -> None:
    overrides = configured(tmp_path, NOISY)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    ranks.run(work.train_one, kind, CONFIG, overrides, whole)
    for more in ({"stop_at": 4}, {"resume": True, "forget_random_state": True}):
        ranks.run(work.train_one_as, kind, CONFIG, overrides, cut, more)
    assert RESULTS[0] in same_results(whole, cut)


@pytest.mark.parametrize("after", ["none", "ddp"])
def test_other_processes_are_refused(ranks: Ranks, after: str, tmp_path: Path) -> None:
    overrides = configured(tmp_path, PLAIN)
    cut = tmp_path / "cut"
    ranks.run(work.train_one_as, "fsdp", CONFIG, overrides, cut, {"stop_at": 4})
    if after == "none":
        with pytest.raises(InputError, match="none, was fsdp; world_size is 1, was 2"):
            train(load_config(CONFIG, overrides), cut, resume=True)
        return
    more = {"resume": True}
    for kind, said, code in ranks.run(
        work.train_one_as, after, CONFIG, overrides, cut, more
    ):
        assert (kind, code) == ("InputError", 4)
        assert "parallel is ddp, was fsdp" in said
