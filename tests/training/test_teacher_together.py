"""Two processes learn from a teacher what one does; under FSDP2 each holds a share."""

from pathlib import Path
from typing import Any

import pytest
import torch
from integration.ranks import Ranks
from safetensors.torch import save_file
from torch import nn
from training import parallel_work as work
from training.test_distributed import (
    CONFIG,
    KINDS,
    NOISY,
    PLAIN,
    SWITCH,
    configured,
    same_results,
    weights,
)

from step_cli.config.train import load_config
from step_cli.training.run import train


def teacher_in(folder: Path, net: str) -> str:
    """The setting that names a teacher of the same model, far from a new one."""
    scope: dict[str, Any] = {}
    exec(net, scope)
    return saved(folder, scope["build"])


def saved(folder: Path, build: Any) -> str:
    torch.manual_seed(7)
    model: nn.Module = build()
    state = {
        name: 3 * value if value.is_floating_point() else value
        for name, value in model.state_dict().items()
    }
    save_file(state, folder / "teacher.safetensors")
    return f"distill.teacher={folder / 'teacher.safetensors'}"


@pytest.mark.parametrize("kind", KINDS)
def test_the_bits_are_those_of_one_process_that_sums_as_they_do(
    ranks: Ranks, kind: str, tmp_path: Path
) -> None:
    more = (teacher_in(tmp_path, PLAIN), "distill.from=5", "distill.temperature=2")
    overrides = configured(tmp_path, PLAIN, *more)
    halves = [*overrides, "train.batch_size=8", "train.grad_accumulation=2"]
    expected = train(load_config(CONFIG, halves), tmp_path / "alone")
    found, _ = ranks.run(work.train_one, kind, CONFIG, overrides, tmp_path / "both")
    alone, both = weights(tmp_path / "alone"), weights(tmp_path / "both")
    assert all(torch.equal(both[name], alone[name]) for name in alone)
    assert expected.distill is not None
    assert found["distill"] == pytest.approx(expected.distill.model_dump())
    left = {path.name for path in (tmp_path / "both").iterdir()}
    assert left == {path.name for path in (tmp_path / "alone").iterdir()}


@pytest.mark.parametrize("kind", KINDS)
def test_processes_that_score_unlike_many_tokens(
    ranks: Ranks, kind: str, tmp_path: Path
) -> None:
    teacher = saved(tmp_path, work.build_tagger)
    tagger = ("model.source=training.parallel_work:build_tagger", "tokens", teacher)
    overrides = configured(tmp_path, PLAIN, *tagger)
    expected = work.train_one("none", CONFIG, overrides, tmp_path / "1")
    found, _ = ranks.run(work.train_one, kind, CONFIG, overrides, tmp_path / "2")
    for losses in ("task_loss", "distill_loss"):
        wanted = pytest.approx(expected["distill"][losses], rel=1e-4)
        assert found["distill"][losses] == wanted
    torch.testing.assert_close(weights(tmp_path / "2"), weights(tmp_path / "1"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_teacher_is_split_as_the_student_is(
    ranks: Ranks, kind: str, tmp_path: Path
) -> None:
    overrides = configured(tmp_path, PLAIN, teacher_in(tmp_path, PLAIN))
    _, _, whole, digest = work.teacher_of("none", CONFIG, overrides)
    answers = ranks.run(work.teacher_of, kind, CONFIG, overrides)
    for shares, held, _, found in answers:
        assert found == digest
        assert shares == [kind == "fsdp"] * 4
        assert held == (0.5 if kind == "fsdp" else 1)
    both = torch.cat([scores for _, _, scores, _ in answers])
    torch.testing.assert_close(both, whole)


@pytest.mark.parametrize("kind", KINDS)
def test_processes_that_were_stopped_end_with_the_same_bits(
    ranks: Ranks, kind: str, tmp_path: Path
) -> None:
    more = (teacher_in(tmp_path, NOISY), "distill.from=switch")
    overrides = configured(tmp_path, NOISY, *more)
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    ranks.run(work.train_one, kind, CONFIG, overrides, whole)
    for options in ({"stop_at": SWITCH - 1}, {"resume": True}):
        ranks.run(work.train_one_as, kind, CONFIG, overrides, cut, options)
    assert same_results(whole, cut) == []


@pytest.mark.parametrize("kind", KINDS)
def test_all_processes_refuse_another_teacher(
    ranks: Ranks, kind: str, tmp_path: Path
) -> None:
    overrides = configured(tmp_path, PLAIN, teacher_in(tmp_path, PLAIN))
    cut = tmp_path / "cut"
    ranks.run(work.train_one_as, kind, CONFIG, overrides, cut, {"stop_at": 4})
    saved(tmp_path, lambda: nn.Sequential(*load_plain()))
    more = {"resume": True}
    answers = ranks.run(work.train_one_as, kind, CONFIG, overrides, cut, more)
    for name, said, code in answers:
        assert (name, code) == ("InputError", 4)
        assert "not the teacher the run began with" in said


def load_plain() -> nn.Sequential:
    """The plain net, drawn after other numbers."""
    scope: dict[str, Any] = {}
    exec(PLAIN, scope)
    torch.rand(3)
    model: nn.Sequential = scope["build"]()
    return model
