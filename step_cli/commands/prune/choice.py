"""The method that the options of `prune` name, ready to prune."""

from contextlib import ExitStack
from pathlib import Path

from step_cli.commands.prune.methods import Method, needs_samples, one_by_one
from step_cli.commands.prune.tensors import LayerToPrune
from step_cli.config.commands import PruneConfig
from step_cli.formats.checkpoint import Checkpoint


def method_of(
    config: PruneConfig,
    checkpoint: Checkpoint,
    layers: list[LayerToPrune],
    folder: Path | None,
    stack: ExitStack,
) -> Method:
    """The method that the options name, ready to prune.

    Args:
        config: The options.
        checkpoint: What is pruned.
        layers: What of it.
        folder: Where something large may be put aside; None: where temporary files
            go.
        stack: Closed once OUT is written, or will not be.

    Raises:
        StepError: The model or the calibration samples are refused.
    """
    if needs_samples(config):
        from step_cli.commands.prune.calibrated import calibrated

        return calibrated(config, checkpoint, layers, folder, stack)
    return one_by_one(config)
