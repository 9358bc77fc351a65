"""Replaying what was recorded, in one pass over each file."""

import stat
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from step_cli.autoswitch.recording import Recording
from step_cli.autoswitch.replay import ANSWERED, OtherBeta2
from step_cli.autoswitch.variance_log import VarianceHeader
from step_cli.commands.profile.replay import Profile, settings_of
from step_cli.config.commands import AutoswitchProfileConfig
from step_cli.config.train import TrainConfig, load_config
from step_cli.errors import InputError, UsageError
from step_cli.formats.files.mapped_file import reason_of
from step_cli.render.status_line import working_on

FILE = "variance.jsonl"
DENSE_AT_FIRST = ("dense", "step")  # as long as they update v
WORST = 0.01  # relative error that an answer for another beta2 may have


def recorded_runs(source: Path) -> list[Path]:
    """The recordings that ``source`` names: itself, that of a run, or of several seeds.

    Raises:
        InputError: There is none.
    """
    try:
        mode = source.stat().st_mode
    except (OSError, ValueError) as error:
        raise InputError(reason_of(error), file=source) from None
    if not stat.S_ISDIR(mode):
        if source.suffix != ".jsonl":
            raise InputError(
                "give a training configuration (.toml), a run directory or a "
                "variance.jsonl",
                file=source,
            )
        return [source]
    log = source / FILE
    logs = [log] if log.is_file() else sorted(source.glob(f"seed-*/{FILE}"), key=_seed)
    if not logs:
        raise InputError("no variance.jsonl in it: not a run directory", file=source)
    return logs


def _seed(log: Path) -> tuple[int, str]:
    """Sorts seed-2 before seed-10."""
    number = log.parent.name.removeprefix("seed-")
    return int(number) if number.isdecimal() else 0, number


def replay_recording(
    options: AutoswitchProfileConfig, log: Path, names: Sequence[str]
) -> Profile:
    """Replay the criteria over one recording.

    Raises:
        InputError: It is damaged, or holds no step.
        NonFiniteError: It holds NaN or infinity.
        UsageError: An option contradicts it.
    """
    with working_on(f"replaying {log}"):
        return _replayed(options, log, names)


def _replayed(
    options: AutoswitchProfileConfig, log: Path, names: Sequence[str]
) -> Profile:
    recording = Recording(log)
    header = recording.header
    other = _other_beta2(options, header, names)
    run = _config_beside(log)
    recorded = recording.count()
    if not recorded:
        raise InputError("no step is recorded in it", file=log)
    switch = None if run is None else run.switch
    settings = settings_of(options, header, switch, recorded)
    profile = Profile(
        settings,
        names,
        header,
        draw=options.plot is not None,
        seed=None if run is None else run.train.seed,
    )
    for sample, layers in islice(recording.steps(), options.steps):
        if other is None:
            profile.update(sample, layers)
        else:
            profile.update(other(sample), ())
    if run is not None and run.sparsity.recipe not in DENSE_AT_FIRST:
        profile.notes.append(
            f"recorded by the recipe {run.sparsity.recipe}: its v is not that of a "
            "dense run"
        )
    if recording.torn:
        profile.notes.append("the last line is torn and left out")
    if options.steps is not None and profile.steps < options.steps:
        profile.notes.append(
            f"--steps {options.steps}: only {profile.steps} are recorded"
        )
    if other is not None:
        _refuse_inexact(other, profile, log)
    return profile


def refuse_other_settings(profiles: Sequence[Profile], logs: Sequence[Path]) -> None:
    """Refuse recordings that are not seeds of one configuration.

    Raises:
        InputError: One has other settings than the first.
    """
    for profile, log in zip(profiles, logs, strict=True):
        if profile.settings != profiles[0].settings:
            raise InputError(
                f"recorded with other settings than {logs[0].parent.name}: "
                "these are not seeds of one configuration",
                file=log,
            )


def _config_beside(log: Path) -> TrainConfig | None:
    """The configuration of the run whose recording this is; None of one alone."""
    path = log.with_name("config.toml")
    return load_config(path) if log.name == FILE and path.is_file() else None


def _other_beta2(
    options: AutoswitchProfileConfig, header: VarianceHeader, names: Sequence[str]
) -> OtherBeta2 | None:
    """What answers for another beta2 than the recorded one, if one is given."""
    other, recorded = options.beta2, header.beta2
    if other is None or recorded is None or other == recorded:
        return None
    unknown = [name for name in names if name not in ANSWERED]
    if unknown:
        raise UsageError(
            f"--beta2: the run was recorded with {recorded:g}, and its sums cannot "
            f"answer {', '.join(unknown)} for another: train again with it, or ask "
            + " ".join(f"--criterion {name}" for name in ANSWERED)
        )
    if options.plot is not None:
        raise UsageError("--plot: nothing to draw for another beta2 than the recorded")
    return OtherBeta2(recorded, other)


def _refuse_inexact(other: OtherBeta2, profile: Profile, log: Path) -> None:
    if profile.has_gaps:
        raise UsageError(
            "--beta2: steps are missing from the recording, and without them its sums "
            "cannot answer for another",
            file=log,
        )
    if other.worst > WORST:
        raise UsageError(
            f"--beta2: too far from the recorded one: rounding in the recorded sums "
            f"could change the answer by {other.worst:.0%}; train again with it",
            file=log,
        )
