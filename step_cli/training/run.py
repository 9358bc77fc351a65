"""A whole training run: its directory, the loop, its results."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from step_cli.config.train import TrainConfig, to_toml
from step_cli.data.batch import Dataset
from step_cli.errors import INTERRUPTED, StoppedError
from step_cli.formats.plan import FILE as PLAN
from step_cli.formats.plan import plan_json, read_plan
from step_cli.nm.pattern import Plan
from step_cli.plots.drawing import require_drawing
from step_cli.reports import TrainReport
from step_cli.training.callbacks import Callback
from step_cli.training.checkpoints import load_checkpoint, save_checkpoint
from step_cli.training.distributed import Processes, process_group
from step_cli.training.memory import translate_memory_errors
from step_cli.training.progress import Place, progress_callbacks
from step_cli.training.records import (
    LayerRecords,
    Records,
    Unrecorded,
    save_text,
    variance_header,
)
from step_cli.training.results import finish, show_stopped
from step_cli.training.run_directory import (
    record_data,
    refuse_impossible,
    refuse_other_config,
    refuse_other_data,
    resumed_directory,
    run_directory,
)
from step_cli.training.setup import Setup, set_up
from step_cli.training.stop import StopRequest, stop_on_request
from step_cli.training.trackers.tracker import Tracker
from step_cli.training.trackers.tracking import require_trackers, tracking
from step_cli.training.trainer import Trainer
from step_cli.training.weights_record import (
    START,
    TEACHER,
    record_digest,
    refuse_other_teacher,
)


def train(
    config: TrainConfig, run_dir: Path, *, force: bool = False, resume: bool = False
) -> TrainReport:
    """Train, and leave records, model, report and curves in ``run_dir``.

    Raises:
        StepError: Something the user can mend; a run directory is left only if it can
            be resumed.
        StoppedError: A signal to stop came, and a checkpoint was saved.
    """
    require_drawing(page=True)
    require_trackers(config.train.trackers)
    with (
        translate_memory_errors(config.train),
        process_group(config.train) as processes,
    ):
        return train_in(processes, config, run_dir, force=force, resume=resume)


@dataclass(frozen=True)
class Shared:
    """What a run shares with others that are trained one after the other.

    Attributes:
        data: Read once; None: the run reads its own.
        stop: Hears of signals between runs too; None: the run listens by itself.
        place: Which of the runs it is; None: the only one.
        quiet: What holds for all of them was told before.
    """

    data: Dataset | None = None
    stop: StopRequest | None = None
    place: Place | None = None
    quiet: bool = False


ALONE = Shared()


def train_in(
    processes: Processes,
    config: TrainConfig,
    run_dir: Path,
    *,
    force: bool,
    resume: bool,
    shared: Shared = ALONE,
) -> TrainReport:
    """As :func:`train`, by all of ``processes``; each gets the report."""
    if resume:
        return _resume(config, processes, run_dir, shared)
    return _begin(config, processes, run_dir, shared, force=force)


def _begin(
    config: TrainConfig,
    processes: Processes,
    run_dir: Path,
    shared: Shared,
    *,
    force: bool,
) -> TrainReport:
    if processes.first:
        refuse_impossible(run_dir, force=force, config=config)
    setup = set_up(config, processes, record=True, data=shared.data, quiet=shared.quiet)
    with for_all(run_directory(run_dir, force=force), processes) as path:
        if processes.first:
            save_text(path / "config.toml", to_toml(config))
            save_text(path / PLAN, plan_json(setup.plan))
            record_data(path, setup.data)
            record_digest(path, START, setup.start)
            if setup.teacher is not None:
                record_digest(path, TEACHER, setup.teacher.sha256)
        return _go_on(config, setup, path, run_dir, shared, after=0)


def _resume(
    config: TrainConfig, processes: Processes, run_dir: Path, shared: Shared
) -> TrainReport:
    with for_all(resumed_directory(run_dir), processes) as path:
        plan = processes.from_first(
            _plan_of(config, path) if processes.first else Plan()
        )
        setup = set_up(
            config,
            processes,
            record=True,
            plan=plan,
            data=shared.data,
            quiet=shared.quiet,
        )
        refuse_other_data(path, setup.data)
        if setup.teacher is not None:
            refuse_other_teacher(path, setup.teacher.path, setup.teacher.sha256)
        step = load_checkpoint(path, setup.model, setup.optimizer, processes)
        return _go_on(config, setup, path, run_dir, shared, after=step)


@contextmanager
def for_all(
    directory: AbstractContextManager[Path], processes: Processes
) -> Iterator[Path]:
    """A directory that the first process holds and all may write to."""
    if processes.first:
        with directory as path:
            yield processes.from_first(path)
    else:
        yield processes.from_first(Path())


def _plan_of(config: TrainConfig, path: Path) -> Plan:
    """The plan of a run that is to go on as it began."""
    refuse_other_config(config, path)
    return read_plan(path / PLAN)


def _go_on(
    config: TrainConfig,
    setup: Setup,
    path: Path,
    run_dir: Path,
    shared: Shared,
    *,
    after: int,
) -> TrainReport:
    optimizer, processes = setup.optimizer, setup.processes

    def save() -> None:
        save_checkpoint(path, setup.model, optimizer, processes, keep=config.train.keep)

    with ExitStack() as told:
        trackers: list[Tracker] = []
        if processes.first:
            trackers = told.enter_context(tracking(config, optimizer, path, after))
        trainer = _take_steps(config, setup, path, shared, trackers, save, after)
        try:
            report = finish(trainer, path, run_dir)
        except (StoppedError, KeyboardInterrupt) as stopped:
            if processes.size == 1:  # others would not come to save with it
                save()
            said = "stopped before its results were complete, go on with --resume"
            code = getattr(stopped, "exit_code", INTERRUPTED)
            raise StoppedError(said, code) from None
        for tracker in trackers:
            tracker.on_report(report)
    return report


def _take_steps(
    config: TrainConfig,
    setup: Setup,
    path: Path,
    shared: Shared,
    trackers: Sequence[Callback],
    save: Callable[[], None],
    after: int,
) -> Trainer:
    """The loop, from the step after ``after`` to the last, or to a request to stop."""
    steps, optimizer, processes = config.train.steps, setup.optimizer, setup.processes
    header = variance_header(config, setup.model, optimizer)
    with ExitStack() as stack:
        stop = shared.stop or stack.enter_context(stop_on_request(processes))
        records, callbacks = Unrecorded(header), list[Callback]()
        if processes.first:
            records = stack.enter_context(Records(path, header, after))
            followed = _callbacks(setup, path, steps, after, shared.place)
            callbacks = [*stack.enter_context(followed), *trackers]
        trainer = Trainer(config, setup, records, save, callbacks)
        trainer.run(stop)
        if optimizer.steps_taken < steps and stop():
            save()
            show_stopped(trainer, path)
            raise stop.stopped_at(optimizer.steps_taken)
    return trainer


@contextmanager
def _callbacks(
    setup: Setup, run_dir: Path, steps: int, after: int, place: Place | None
) -> Iterator[list[Callback]]:
    """All that is called at each step until the block ends.

    Args:
        setup: The parts of the run.
        run_dir: Where files go.
        steps: Length of the run.
        after: The step it goes on after.
        place: Which of several runs it is.
    """
    optimizer = setup.optimizer
    with ExitStack() as stack:
        layers = LayerRecords(run_dir, setup.model, optimizer, setup.plan, after)
        stack.callback(layers.close)
        shown = stack.enter_context(progress_callbacks(optimizer, steps, place))
        yield [layers, *shown]
