"""All that follows a run: progress, each layer's flips, TensorBoard."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from step_cli.training import event_files
from step_cli.training.callback import Follower
from step_cli.training.layer_records import LayerRecords
from step_cli.training.progress import shown_progress
from step_cli.training.setup import Setup


@contextlib.contextmanager
def following(
    setup: Setup, run_dir: Path, steps: int, after: int
) -> Iterator[list[Follower]]:
    """What is to be told of each step, until the block ends.

    Args:
        setup: The parts of the run.
        run_dir: Where files go.
        steps: Length of the run.
        after: The step it goes on after.
    """
    optimizer = setup.optimizer
    with contextlib.ExitStack() as open_ones:
        followers: list[Follower] = [
            LayerRecords(run_dir, setup.model, optimizer, setup.plan, after)
        ]
        open_ones.callback(followers[0].close)
        if event_files.installed():
            events = event_files.EventFiles(run_dir, optimizer, after)
            open_ones.callback(events.close)
            followers.append(events)
        yield followers + open_ones.enter_context(shown_progress(optimizer, steps))
