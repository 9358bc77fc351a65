"""``train --recipes``: the same training by several recipes, one run after the other.

Each run is a run directory of its own below that of the comparison, so what is done can
be told from what is there: nothing else is kept between the parts of a comparison that
was stopped.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from step_cli.commands.compare.estimate import estimate
from step_cli.commands.compare.outcome import (
    FINISHED,
    NEW,
    RESUMABLE,
    Outcome,
    outcome_of,
    reason_of,
    state_of,
    visible,
)
from step_cli.commands.compare.pace import Pace
from step_cli.commands.compare.page import write_results
from step_cli.commands.compare.report import report_on
from step_cli.commands.compare.runs import Run
from step_cli.commands.compare.statistics import CONFIDENCE, t_quantile
from step_cli.commands.compare.trial import all_looked_at_later, forget, try_all
from step_cli.data.batch import Dataset
from step_cli.data.load import load_data
from step_cli.errors import InputError, OutputError, StepError, StoppedError
from step_cli.plots.drawing import require_drawing
from step_cli.render.status_line import working_on
from step_cli.reports import CompareDryRunReport, CompareReport
from step_cli.training.distributed import Processes, process_group
from step_cli.training.memory import translate_memory_errors
from step_cli.training.progress import Place
from step_cli.training.run import Shared, for_all, train_in
from step_cli.training.run_directory import (
    refuse_impossible,
    resumed_directory,
    run_directory,
)
from step_cli.training.stop import StopRequest, stop_on_request
from step_cli.training.trackers.tracking import require_trackers

logger = logging.getLogger(__name__)
States = dict[str, tuple[str, Outcome | None]]


def compare(
    runs: Sequence[Run], run_dir: Path, *, force: bool, resume: bool
) -> CompareReport:
    """Train every run that is not finished, and compare all of them.

    Raises:
        StepError: Something the user can mend; before the first step, or where what a
            run or the comparison gives cannot be written. A run that fails otherwise
            is a row of the report.
        StoppedError: A signal to stop came.
    """
    require_drawing(page=True)
    require_trackers(runs[0].config.train.trackers)
    t_quantile(CONFIDENCE, 1)  # scipy is there, or this is the time to say so
    with process_group(runs[0].config.train) as processes, all_looked_at_later():
        if resume:
            with for_all(resumed_directory(run_dir), processes) as path:
                states = _states(runs, path, processes)
                return _go_on(runs, run_dir, processes, states)
        if processes.first:
            refuse_impossible(run_dir, force=force, config=runs[0].config)
        data = load_data(runs[0].config.data)
        try_all(runs, data, processes)
        with for_all(run_directory(run_dir, force=force), processes):
            return _train_all(_Session(runs, run_dir, processes, data), {})


def dry_run(
    runs: Sequence[Run], run_dir: Path, *, force: bool, resume: bool
) -> CompareDryRunReport:
    """What :func:`compare` would train, and how long; nothing is written.

    Raises:
        StepError: Something the user can mend.
    """
    with process_group(runs[0].config.train) as processes, all_looked_at_later():
        states: States = {run.name: (NEW, None) for run in runs}
        if resume:
            if not run_dir.is_dir():
                raise InputError("nothing to resume: no such directory", file=run_dir)
            states = _states(runs, run_dir, processes)
        elif processes.first:
            refuse_impossible(run_dir, force=force, config=runs[0].config)
        data = load_data(runs[0].config.data)
        left = _left(runs, states)
        try_all(left, data, processes, _begun(runs, run_dir, states, processes))
        known = {name: state for name, (state, _) in states.items()}
        return estimate(runs, run_dir, known, data, processes)


@working_on("looking at the runs that are there")
def _states(runs: Sequence[Run], path: Path, processes: Processes) -> States:
    """How each run stands; the first process looks, and all know."""
    states: States = {}
    if processes.first:
        _refuse_foreign(path)
        states = {run.name: state_of(run, path / run.name) for run in runs}
    return processes.from_first(states)


def _refuse_foreign(path: Path) -> None:
    """Refuse to go on in what is no comparison; one that just began may be empty."""
    if (path / "config.toml").exists():
        raise InputError(
            "is the directory of a single run, not of a comparison; name another",
            file=path,
        )
    there = visible(path)
    if there and not any(
        (each / "config.toml").is_file() or each.name.startswith("comparison.")
        for each in there
    ):
        raise InputError("nothing to resume: no comparison was begun here", file=path)


def _left(runs: Sequence[Run], states: States) -> list[Run]:
    return [run for run in runs if states[run.name][0] != FINISHED]


def _begun(
    runs: Sequence[Run], path: Path, states: States, processes: Processes
) -> dict[Path, Run]:
    """The runs that are there, by directory; the first process looks at them."""
    if not processes.first:
        return {}
    return {path / run.name: run for run in runs if states[run.name][0] != NEW}


def _go_on(
    runs: Sequence[Run], run_dir: Path, processes: Processes, states: States
) -> CompareReport:
    """Go on in a directory that is held."""
    left = _left(runs, states)
    logger.info("%d of %d runs are finished", len(runs) - len(left), len(runs))
    data = None
    if left:
        data = load_data(runs[0].config.data)
        try_all(left, data, processes, _begun(runs, run_dir, states, processes))
    return _train_all(_Session(runs, run_dir, processes, data), states)


@dataclass
class _Session:
    """The part of a comparison that this process works on.

    Attributes:
        runs: All of them.
        run_dir: How the user named the directory.
        processes: The processes that train together.
        data: Of all runs; None where none is left to be trained.
    """

    runs: Sequence[Run]
    run_dir: Path
    processes: Processes
    data: Dataset | None
    pace: Pace = field(default_factory=Pace)


def _train_all(session: _Session, states: States) -> CompareReport:
    outcomes = {name: found for name, (_, found) in states.items() if found is not None}
    with stop_on_request(session.processes) as stop:
        try:
            for number, run in enumerate(session.runs):
                if run.name in outcomes:
                    continue
                if stop():
                    raise stop.stopped(
                        f"stopped before {run.name}, go on with --resume"
                        if states or number
                        else "stopped before the first step, nothing written"
                    )
                rest = [r for r in session.runs[number + 1 :] if r.name not in outcomes]
                resume = states.get(run.name, (NEW, None))[0] == RESUMABLE
                place = Place(
                    run.name,
                    number + 1,
                    len(session.runs),
                    partial(session.pace.seconds_for, rest),
                )
                outcomes[run.name] = _one(session, run, place, stop, resume=resume)
        except Exception:
            # What is done is not lost with what ends the comparison. Other processes
            # may not come, so none is waited for.
            _write(session, outcomes)
            raise
    found = _write(session, outcomes)
    session.processes.wait()
    return report_on(found, str(session.run_dir))


def _one(
    session: _Session,
    run: Run,
    place: Place,
    stop: StopRequest,
    *,
    resume: bool,
) -> Outcome:
    """Train one run; one that fails is an outcome too."""
    logger.info("%s", place.words())
    path, processes = session.run_dir / run.name, session.processes
    begun = time.monotonic()
    try:
        with translate_memory_errors(run.config.train):
            train_in(
                processes,
                run.config,
                path,
                force=True,
                resume=resume,
                shared=Shared(session.data, stop, place, quiet=True),
            )
    except StepError as error:
        # Others may wait for this one, within another step; and what cannot be written
        # now, cannot be in the next run either.
        if processes.size > 1 or isinstance(error, OutputError):
            error.message = f"{run.name}: {error.message}"
            raise
        outcome = Outcome(run, reason=reason_of(error))
    except StoppedError as stopped:
        raise StoppedError(f"{place.words()}: {stopped}", stopped.exit_code) from None
    else:
        outcome = processes.from_first(
            outcome_of(run, path) if processes.first else Outcome(run)
        )
    finally:
        forget(compiled=run.config.train.compile)
    if outcome.reason is not None:
        logger.warning("%s does not count: %s", run.name, outcome.reason)
    elif not resume:  # or nothing tells how many steps this part took
        took = time.monotonic() - begun
        session.pace.add(run, took, run.config.train.steps)
    return outcome


def _write(session: _Session, outcomes: dict[str, Outcome]) -> list[Outcome]:
    """Compare what there is; the first process writes it."""
    never = "was not trained"
    found = [outcomes.get(run.name, Outcome(run, reason=never)) for run in session.runs]
    if session.processes.first:
        write_results(session.run_dir, found)
    return found
