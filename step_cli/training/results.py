"""What a run ends with: its report, the model, the curves."""

import logging
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from step_cli.config.data import BYTES
from step_cli.config.train import TrainConfig
from step_cli.errors import StepError
from step_cli.formats.model_json import ModelSource
from step_cli.optim.layers import density
from step_cli.reports import TrainReport
from step_cli.training.history import switch_point
from step_cli.training.model_files import save_model
from step_cli.training.run_files import save_text
from step_cli.training.run_page import show_run
from step_cli.training.trainer import Trainer
from step_cli.training.wrapping import shared_buffers, whole_state

logger = logging.getLogger(__name__)


def finish(trainer: Trainer, path: Path, run_dir: Path) -> TrainReport:
    """Evaluate, and write what a run leaves; all processes must call it.

    Args:
        trainer: Has taken its last step.
        path: The run directory.
        run_dir: How the user named it.
    """
    setup = trainer.setup
    report = _report(trainer, run_dir)
    with shared_buffers(setup.model, setup.world):
        state = whole_state(setup.model, setup.world)
        if setup.world.first:
            kept = density(state, setup.plan)
            report = report.model_copy(update={"density": kept})
            _write(trainer, state, report, path)
    setup.world.wait()
    return report


def _write(
    trainer: Trainer, state: Mapping[str, Tensor], report: TrainReport, path: Path
) -> None:
    config, setup, optimizer = trainer.config, trainer.setup, trainer.setup.optimizer
    if report.ok:
        plan = setup.plan if optimizer.current_phase.sparse else None
        source = ModelSource(config.model.source, config.model.options)
        tokenizers = _tokenizers(config)
        save_model(path / "model", setup.model, plan, source, tokenizers, state)
    save_text(path / "report.json", report.document() + "\n")
    show_run(path, config, setup, report)


def show_stopped(trainer: Trainer, path: Path) -> None:
    """Show how far a run came; the checkpoint is what a stop is about."""
    world = trainer.setup.world
    if world.first:
        try:
            show_run(path, trainer.config, trainer.setup, None)
        except StepError as error:
            logger.warning("no curves and no report: %s", error.message)
    world.wait()


def _tokenizers(config: TrainConfig) -> list[Path]:
    """The directories whose tokenizer the model was trained with, if there are any."""
    given = (config.model.source, config.data.tokenizer)
    return [Path(place) for place in given if place not in (None, BYTES)]


def _report(trainer: Trainer, run_dir: Path) -> TrainReport:
    config, optimizer = trainer.config, trainer.setup.optimizer
    sparse = optimizer.current_phase.sparse
    reached = optimizer.switch_step is not None or not optimizer.recipe.switches
    return TrainReport(
        ok=reached,
        recipe=config.sparsity.recipe,
        pattern=str(config.sparsity.pattern) if sparse else None,
        steps=optimizer.steps_taken,
        switch=switch_point(optimizer),
        metrics=trainer.evaluate(),
        dense_metrics=trainer.evaluate_dense() if sparse else None,
        density=1.0,  # told when the weights are brought together
        run_dir=str(run_dir),
        parallel=trainer.setup.world.kind,
        processes=trainer.setup.world.size,
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
