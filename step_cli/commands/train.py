"""``train``: from a configuration file to a run directory.

The file is checked before torch is imported, so that its mistakes are shown at once.
"""

from pathlib import Path

from step_cli.config.commands import TrainCommandConfig
from step_cli.config.data import BUILT_IN
from step_cli.config.train import load_config
from step_cli.data.files import kind_of
from step_cli.errors import UsageError, naming
from step_cli.reports import TrainReport


def run(command: TrainCommandConfig) -> TrainReport:
    """Train by the configuration, or evaluate a checkpoint with ``evaluate``.

    Raises:
        StepError: Something the user can mend; then no run directory is left.
    """
    if command.resume and command.force:
        raise UsageError("--resume goes on with a run, --force replaces it: use one")
    if command.evaluate is not None and (command.resume or command.force):
        raise UsageError("--evaluate trains nothing: leave out --resume and --force")
    config = load_config(command.config, command.set)
    with naming(file=command.config, kind=UsageError):
        if config.data.source not in BUILT_IN:
            kind_of(config.data)
        from step_cli.training.run import evaluate_checkpoint, train

        if command.evaluate is not None:
            return evaluate_checkpoint(config, command.evaluate)
        run_dir = command.run_dir or Path("runs") / command.config.stem
        return train(config, run_dir, force=command.force, resume=command.resume)
