"""A whole training run: its directory, the loop, its results."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from step_cli.config.train import TrainConfig, keys_of, load_config, to_toml
from step_cli.data.load import load_data
from step_cli.errors import INTERRUPTED, InputError, StoppedError
from step_cli.formats.open import open_checkpoint
from step_cli.formats.plan import FILE as PLAN
from step_cli.formats.plan import plan_json, read_plan
from step_cli.models.spec import build_model, load_weights
from step_cli.nm.pattern import Plan
from step_cli.optim.layers import density, plan_for
from step_cli.reports import TrainReport
from step_cli.training.callback import Follower
from step_cli.training.callbacks import following
from step_cli.training.checkpoints import load_checkpoint, save_checkpoint
from step_cli.training.data_record import record_data, refuse_other_data
from step_cli.training.distributed import World, joined
from step_cli.training.evaluate import evaluate
from step_cli.training.memory import told_as_out_of_memory
from step_cli.training.results import finish, show_stopped
from step_cli.training.run_directory import (
    refuse_impossible,
    resumed_directory,
    run_directory,
)
from step_cli.training.run_files import Records, Unrecorded, save_text
from step_cli.training.run_page import check_libraries
from step_cli.training.setup import Setup, selection, set_up
from step_cli.training.stop import stop_on_request
from step_cli.training.trainer import Trainer
from step_cli.training.variance_header import variance_header
from step_cli.training.wrapping import spread


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
    with told_as_out_of_memory(config.train), joined(config.train) as world:
        return train_in(world, config, run_dir, force=force, resume=resume)


def train_in(
    world: World, config: TrainConfig, run_dir: Path, *, force: bool, resume: bool
) -> TrainReport:
    """As :func:`train`, by the processes of ``world``; each gets the report."""
    if resume:
        return _resume(config, world, run_dir)
    return _begin(config, world, run_dir, force=force)


def _begin(
    config: TrainConfig, world: World, run_dir: Path, *, force: bool
) -> TrainReport:
    if world.first:
        refuse_impossible(run_dir, force=force)
    setup = set_up(config, world, record=True)
    with _for_all(run_directory(run_dir, force=force), world) as path:
        if world.first:
            save_text(path / "config.toml", to_toml(config))
            save_text(path / PLAN, plan_json(setup.plan))
            record_data(path, setup.data)
        return _go_on(config, setup, path, run_dir, after=0)


def _resume(config: TrainConfig, world: World, run_dir: Path) -> TrainReport:
    with _for_all(resumed_directory(run_dir), world) as path:
        plan = world.from_first(_plan_of(config, path) if world.first else Plan())
        setup = set_up(config, world, record=True, plan=plan)
        refuse_other_data(path, setup.data)
        step = load_checkpoint(path, setup.model, setup.optimizer, world)
        return _go_on(config, setup, path, run_dir, after=step)


@contextmanager
def _for_all(directory: AbstractContextManager[Path], world: World) -> Iterator[Path]:
    """A directory that the first process holds and all may write to."""
    if world.first:
        with directory as path:
            yield world.from_first(path)
    else:
        yield world.from_first(Path())


def _plan_of(config: TrainConfig, path: Path) -> Plan:
    """The plan of a run that is to go on as it began."""
    refuse_other_config(config, path)
    return read_plan(path / PLAN)


def _go_on(
    config: TrainConfig, setup: Setup, path: Path, run_dir: Path, *, after: int
) -> TrainReport:
    train, optimizer, world = config.train, setup.optimizer, setup.world

    def save() -> None:
        save_checkpoint(path, setup.model, optimizer, world, keep=train.keep)

    header = variance_header(config, setup)
    with ExitStack() as stack:
        stop = stack.enter_context(stop_on_request(world))
        records, told = Unrecorded(header), list[Follower]()
        if world.first:
            records = stack.enter_context(Records(path, header, after))
            told = stack.enter_context(following(setup, path, train.steps, after))
        trainer = Trainer(config, setup, records, save, told)
        trainer.run(stop)
        if optimizer.steps_taken < train.steps and stop():
            save()
            show_stopped(trainer, path)
            raise stop.stopped_at(optimizer.steps_taken)
    try:
        return finish(trainer, path, run_dir)
    except (StoppedError, KeyboardInterrupt) as stopped:
        if world.size == 1:  # others would not come to save with it
            save()
        said = "stopped before its results were complete, go on with --resume"
        raise StoppedError(said, getattr(stopped, "exit_code", INTERRUPTED)) from None


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
    with told_as_out_of_memory(config.train), joined(config.train) as world:
        opened = open_checkpoint(checkpoint)
        model = build_model(config.model.source, config.model.options).model
        places = load_weights(model, opened)
        data, precision = load_data(config.data), config.train.precision
        given = opened.plan or {}
        stored = {places[name]: given[name] for name in given if name in places}
        plan = stored or plan_for(model, selection(config))
        found = {str(layer.pattern) for layer in stored.values()}
        kept = density(model.state_dict(), plan)
        spread(model, plan, world, compile=config.train.compile)
        return TrainReport(
            ok=True,
            recipe=None,
            pattern=", ".join(sorted(found)) or None,
            steps=0,
            switch=None,
            metrics=evaluate(
                model,
                data.held_out,
                world,
                precision,
                batch_size=config.train.batch_size,
            ),
            dense_metrics=None,
            density=kept,
            run_dir=str(checkpoint),
            parallel=world.kind,
            processes=world.size,
        )
