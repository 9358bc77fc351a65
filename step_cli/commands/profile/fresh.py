"""Recording dense runs for ``autoswitch-profile``, one for each seed."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from step_cli.autoswitch.criterion import VarianceSample
from step_cli.autoswitch.replay import STEPS_AFTER
from step_cli.autoswitch.variance_log import LayerSums, VarianceHeader
from step_cli.commands.profile.replay import Profile, Settings, settings_of
from step_cli.config.commands import AutoswitchProfileConfig
from step_cli.config.train import (
    TrainConfig,
    load_config,
    refuse_high_seeds,
    with_seed,
)
from step_cli.errors import OutputError, UsageError
from step_cli.formats.files.target import refuse_input
from step_cli.formats.files.temporary import temporary_directory

logger = logging.getLogger(__name__)


def config_to_record(options: AutoswitchProfileConfig) -> TrainConfig:
    """The configuration that is trained, checked before torch is imported.

    Raises:
        InputError: It cannot be read.
        UsageError: It is wrong, trains without a variance, or lies in ``--out``.
        OutputError: ``--out`` exists.
    """
    config = load_config(options.source, options.set)
    if config.train.optimizer == "sgd":
        raise UsageError(
            "train.optimizer: sgd has no variance; use adamw", file=options.source
        )
    refuse_high_seeds(config, options.seeds)
    if options.out is not None and os.path.lexists(options.out) and not options.force:
        raise OutputError("exists, use --force to replace it", file=options.out)
    if options.out is not None:
        refuse_input(options.out, options.source)
    if options.beta2 is not None:
        betas = {"betas": (config.train.betas[0], options.beta2)}
        train = config.train.model_copy(update=betas)
        config = config.model_copy(update={"train": train})
    _settings(options, config)
    return config


@contextmanager
def run_folder(options: AutoswitchProfileConfig, config: TrainConfig) -> Iterator[Path]:
    """Where the runs are recorded: ``--out``, or a place that is cleared again.

    Raises:
        UsageError: ``--out`` holds what is read, and would be replaced.
        OutputError: The system refuses.
    """
    if options.out is None:
        with temporary_directory("profile") as path:
            yield path
        return
    from step_cli.training.run_directory import refuse_impossible, run_directory

    refuse_impossible(options.out, force=options.force, config=config)
    with run_directory(options.out, force=options.force) as path:
        yield path


def record_and_replay(
    options: AutoswitchProfileConfig,
    config: TrainConfig,
    names: Sequence[str],
    folder: Path,
    number: int,
) -> Profile:
    """Train with one seed, the ``number``-th, replaying the criteria on the way.

    Raises:
        StepError: Something the user can mend.
    """
    from step_cli.training.dense_recording import DenseRun

    settings = _settings(options, config)
    seeded = with_seed(config, number)
    seed = seeded.train.seed
    path = folder
    if options.seeds > 1:
        logger.info("seed %d, %d of %d", seed, number + 1, options.seeds)
        path = folder / f"seed-{seed}"
        path.mkdir()
    run, draw = DenseRun(seeded, path), options.plot is not None
    profile = Profile(settings, names, run.header, draw=draw, seed=seed)

    def is_enough(sample: VarianceSample, layers: LayerSums) -> bool:
        profile.update(sample, layers)
        return options.steps is None and profile.is_decided

    run.record(is_enough, last_step=options.steps or settings.total_steps + STEPS_AFTER)
    return profile


def _settings(options: AutoswitchProfileConfig, config: TrainConfig) -> Settings:
    train = config.train
    header = VarianceHeader(train.betas[1], train.eps, train.steps)
    return settings_of(options, header, config.switch, train.steps)
