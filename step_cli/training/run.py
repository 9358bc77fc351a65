"""A whole training run: its directory, the loop, its results."""

import logging
from functools import partial
from pathlib import Path

from step_cli.core.layers import density, plan_for
from step_cli.data import load_data
from step_cli.errors import InputError, StepError
from step_cli.formats.model_source import ModelSource
from step_cli.formats.plan import FILE as PLAN
from step_cli.formats.plan import plan_json, read_plan
from step_cli.formats.weights import open_checkpoint
from step_cli.models import build_model, load_weights
from step_cli.reports import TrainReport
from step_cli.train_config import TrainConfig, keys_of, load_config, to_toml
from step_cli.training.checkpoints import load_checkpoint, save_checkpoint
from step_cli.training.evaluate import evaluate
from step_cli.training.followers import following
from step_cli.training.history import switch_point
from step_cli.training.model_files import save_model
from step_cli.training.run_directory import (
    refuse_impossible,
    resumed_directory,
    run_directory,
)
from step_cli.training.run_files import Records, save_text
from step_cli.training.run_page import check_libraries, show_run
from step_cli.training.setup import Setup, default_device, selection, set_up
from step_cli.training.stop import stop_on_request
from step_cli.training.trainer import Trainer
from step_cli.training.variance_header import variance_header

logger = logging.getLogger(__name__)


def train(
    config: TrainConfig, run_dir: Path, *, force: bool = False, resume: bool = False
) -> TrainReport:
    """Train, and leave records, model, report and curves in ``run_dir``.

    Raises:
        StepError: Something the user can mend; a run directory is left only if it can
            be resumed.
        StoppedError: A signal asked to stop, and a checkpoint was saved.
    """
    check_libraries()
    if resume:
        with resumed_directory(run_dir) as path:
            refuse_other_config(config, run_dir)
            setup = set_up(config, record=True, plan=read_plan(path / PLAN))
            step = load_checkpoint(path, setup.model, setup.optimizer)
            return _go_on(config, setup, path, run_dir, after=step)
    refuse_impossible(run_dir, force=force)
    setup = set_up(config, record=True)
    with run_directory(run_dir, force=force) as path:
        save_text(path / "config.toml", to_toml(config))
        save_text(path / PLAN, plan_json(setup.plan))
        return _go_on(config, setup, path, run_dir, after=0)


def _go_on(
    config: TrainConfig, setup: Setup, path: Path, run_dir: Path, *, after: int
) -> TrainReport:
    settings, optimizer = config.train, setup.optimizer
    header = variance_header(config, setup)
    save = partial(save_checkpoint, path, setup.model, optimizer, keep=settings.keep)
    with (
        Records(path, header, after) as records,
        following(setup, path, settings.steps, after) as followers,
        stop_on_request() as stop,
    ):
        trainer = Trainer(config, setup, records, save, followers)
        trainer.run(stop)
        if stop() and optimizer.steps_taken < settings.steps:
            save()
            _show_stopped(path, config, setup)
            raise stop.stopped_at(optimizer.steps_taken)
    report = _report(trainer, run_dir)
    if report.ok:
        plan = setup.plan if optimizer.rules.sparse else None
        source = ModelSource(config.model.source, config.model.options)
        save_model(path / "model", setup.model, plan, source, _tokenizers(config))
    save_text(path / "report.json", report.document() + "\n")
    show_run(path, config, setup, report)
    return report


def _tokenizers(config: TrainConfig) -> list[Path]:
    """The directories whose tokenizer the model was trained with, if there are any."""
    given = (config.model.source, config.data.tokenizer)
    return [Path(place) for place in given if place is not None]


def _show_stopped(path: Path, config: TrainConfig, setup: Setup) -> None:
    """Show how far it came; the checkpoint is what a stop is about."""
    try:
        show_run(path, config, setup, None)
    except StepError as error:
        logger.warning("no curves and no report: %s", error.message)


def refuse_other_config(config: TrainConfig, run_dir: Path) -> None:
    """Refuse to go on with another configuration than the run began with.

    Raises:
        InputError: There is no run, or keys differ.
    """
    path = run_dir / "config.toml"
    if not path.is_file():
        raise InputError("nothing to resume: no run was begun here", file=run_dir)
    ours, theirs = dict(keys_of(config)), dict(keys_of(load_config(path)))
    differ = [
        f"{key} is {ours.get(key)!r}, was {theirs.get(key)!r}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    if differ:
        raise InputError(f"another configuration: {'; '.join(differ)}", file=run_dir)


def evaluate_checkpoint(config: TrainConfig, checkpoint: Path) -> TrainReport:
    """The metrics of any checkpoint that fits the model; nothing is written.

    Raises:
        StepError: Something the user can mend.
    """
    opened = open_checkpoint(checkpoint)
    model = build_model(config.model.source, config.model.options).model
    places = load_weights(model, opened)
    data, device = load_data(config.data), default_device()
    given = opened.plan or {}
    stored = {places[name]: given[name] for name in given if name in places}
    plan = stored or plan_for(model, selection(config))
    patterns = sorted({str(layer.pattern) for layer in stored.values()})
    return TrainReport(
        ok=True,
        recipe=None,
        pattern=", ".join(patterns) or None,
        steps=0,
        switch=None,
        metrics=evaluate(
            model.to(device),
            data.held_out,
            device,
            config.train.precision,
            batch_size=config.train.batch_size,
        ),
        dense_metrics=None,
        density=density(model.state_dict(), plan),
        run_dir=str(checkpoint),
    )


def _report(trainer: Trainer, run_dir: Path) -> TrainReport:
    config, optimizer = trainer.config, trainer.setup.optimizer
    sparse = optimizer.rules.sparse
    reached = optimizer.switch_step is not None or not optimizer.recipe.switches
    return TrainReport(
        ok=reached,
        recipe=config.sparsity.recipe,
        pattern=str(config.sparsity.pattern) if sparse else None,
        steps=optimizer.steps_taken,
        switch=switch_point(optimizer),
        metrics=trainer.evaluate(),
        dense_metrics=trainer.evaluate_dense() if sparse else None,
        density=density(trainer.setup.model.state_dict(), trainer.setup.plan),
        run_dir=str(run_dir),
        advice=[] if reached else [_never_switched(trainer)],
    )


def _never_switched(trainer: Trainer) -> str:
    steps, (_, t_max) = trainer.config.train.steps, trainer.config.clip
    rule = trainer.setup.optimizer.rule
    assert rule is not None
    seen = "" if rule.lowest is None else f"; its lowest value was {rule.lowest:.3g}"
    return (
        f"the switch was never reached in {steps} steps ({rule.criterion.name} against "
        f"{rule.criterion.threshold}{seen}), and no model was written; lower "
        f"switch.t_max, now {t_max}, or raise switch.eps"
    )
