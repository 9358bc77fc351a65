"""``train``: from a configuration file to a run directory, or to a comparison of runs.

The file is checked before torch is imported, so that its mistakes are shown at once.
"""

from pathlib import Path

from step_cli.config.commands import TrainCommandConfig
from step_cli.config.data import BUILT_IN
from step_cli.config.train import TrainConfig, load_config
from step_cli.data.files import kind_of
from step_cli.errors import UsageError, naming
from step_cli.formats.files.target import refuse_input
from step_cli.render.status_line import working_on
from step_cli.reports import CompareDryRunReport, CompareReport, TrainReport

AnyReport = TrainReport | CompareReport | CompareDryRunReport


def run(command: TrainCommandConfig) -> AnyReport:
    """Train by the configuration, by several recipes, or evaluate a checkpoint.

    Raises:
        StepError: Something the user can mend; then no run directory is left.
    """
    _refuse_contradictions(command)
    config = load_config(command.config, command.set)
    with naming(file=command.config, kind=UsageError):
        if config.data.source not in BUILT_IN:
            kind_of(config.data)
        if command.recipes is not None:
            return _compare(command, config, command.recipes)
        if command.evaluate is not None:
            with working_on("loading libraries"):
                from step_cli.commands.evaluate import evaluate_checkpoint

            return evaluate_checkpoint(config, command.evaluate)
        with working_on("loading libraries"):
            from step_cli.commands.foresight import foresee
            from step_cli.training.run import train

        run_dir = _run_dir(command)
        if not command.resume:
            foresee(config)
        return train(config, run_dir, force=command.force, resume=command.resume)


def _refuse_contradictions(command: TrainCommandConfig) -> None:
    if command.resume and command.force:
        raise UsageError("--resume goes on with a run, --force replaces it: use one")
    if command.evaluate is not None:
        if command.resume or command.force:
            raise UsageError(
                "--evaluate trains nothing: leave out --resume and --force"
            )
        if command.recipes is not None:
            raise UsageError("--evaluate trains nothing: leave out --recipes")
    if command.recipes is None:
        given = [
            name for name in ("patterns", "seeds", "dry_run") if _is_set(command, name)
        ]
        if given:
            flag = given[0].replace("_", "-")
            raise UsageError(f"--{flag} is for a comparison: give --recipes too")


def _is_set(command: TrainCommandConfig, name: str) -> bool:
    return bool(getattr(command, name) != TrainCommandConfig.model_fields[name].default)


def _compare(
    command: TrainCommandConfig, config: TrainConfig, recipes: tuple[str, ...]
) -> CompareReport | CompareDryRunReport:
    from step_cli.commands.compare.runs import runs_of

    runs = runs_of(config, recipes, command.patterns, command.seeds)
    with working_on("loading libraries"):
        from step_cli.commands.compare.run import compare, dry_run

    start = dry_run if command.dry_run else compare
    return start(runs, _run_dir(command), force=command.force, resume=command.resume)


def _run_dir(command: TrainCommandConfig) -> Path:
    """Where the run is to be.

    Raises:
        UsageError: The configuration would be deleted with the old run.
    """
    run_dir = command.run_dir or Path("runs") / command.config.stem
    if command.force:
        refuse_input(run_dir, command.config)
    return run_dir
