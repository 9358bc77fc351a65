"""What is said while a model is pruned."""

import logging

import pytest
from torch import nn

from step_cli.oneshot import progress
from step_cli.oneshot.inputs import TargetLayer
from step_cli.oneshot.progress import PruningProgress, in_words


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_block_layer_and_time_left_are_named(
    clock: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    layers = [TargetLayer(f"{i}.weight", nn.Linear(8, 8)) for i in range(6)]
    said = PruningProgress(layers, lambda name: None)
    said.skip(layers[:2])  # done by the run this one goes on from
    said.begin("block 2 of 3", layers[2:4])
    clock[0] += 4
    said.pruned(layers[2])  # too soon to say
    clock[0] += 16
    said.pruned(layers[3])
    said.begin("block 3 of 3", layers[4:])
    assert caplog.messages == [
        "block 2 of 3: 2 layers",
        "block 2 of 3: 3.weight is pruned, about 20 s left",
        "block 3 of 3: 2 layers, about 20 s left",
    ]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.2, "1 s"), (89, "89 s"), (90, "2 min"), (3000, "50 min"), (9000, "2.5 h")],
)
def test_times_have_few_digits(seconds: float, words: str) -> None:
    assert in_words(seconds) == words
