"""``autoswitch-profile``: where each criterion would switch, on a dense run."""

from collections.abc import Sequence
from pathlib import Path

from step_cli.autoswitch.autoswitch import CRITERION_NAMES
from step_cli.commands.profile.fresh import (
    config_to_record,
    record_and_replay,
    run_folder,
)
from step_cli.commands.profile.recorded import (
    recorded_runs,
    refuse_other_settings,
    replay_recording,
)
from step_cli.commands.profile.replay import Profile
from step_cli.commands.profile.report import report_on
from step_cli.config.commands import AutoswitchProfileConfig
from step_cli.errors import UsageError, nearest
from step_cli.formats.files.target import checked_target
from step_cli.plots.drawing import require_drawing
from step_cli.render.status_line import working_on
from step_cli.reports import AutoswitchProfileReport

NONE_TRAINED = AutoswitchProfileConfig(source=Path())
Results = tuple[Sequence[Profile], AutoswitchProfileReport]
PLOT_SUFFIXES = (".svg", ".png", ".html")


def run(options: AutoswitchProfileConfig) -> AutoswitchProfileReport:
    """Record dense runs, or take recorded ones, and replay the criteria over them.

    Raises:
        InputError: The recording is missing or damaged.
        NonFiniteError: It holds NaN or infinity.
        UsageError: An option is wrong, or contradicts the recording.
        StepError: The training fails.
    """
    names = _criteria(options.criterion)
    if options.plot is not None and options.plot.suffix not in PLOT_SUFFIXES:
        raise UsageError(f"--plot: use one of {', '.join(PLOT_SUFFIXES)}")
    if options.source.suffix == ".toml" and not options.source.is_dir():
        profiles, report = _train(options, names)
    else:
        profiles, report = _replay(options, names)
    if options.plot is not None:
        _draw(options.plot, report, profiles)
    return report


def _train(options: AutoswitchProfileConfig, names: Sequence[str]) -> Results:
    config = config_to_record(options)
    _check_plot(options.plot, [options.source])
    with run_folder(options, config) as folder:
        profiles = [
            record_and_replay(options, config, names, folder, number)
            for number in range(options.seeds)
        ]
        report = report_on(options, profiles)
        if options.out is not None:
            from step_cli.training.records import save_text

            save_text(folder / "autoswitch.json", report.document() + "\n")
    return profiles, report


def _replay(options: AutoswitchProfileConfig, names: Sequence[str]) -> Results:
    logs = recorded_runs(options.source)
    for name in ("seeds", "set", "out", "force"):
        if getattr(options, name) != getattr(NONE_TRAINED, name):
            raise UsageError(
                f"--{name}: for a training configuration; {options.source} is a "
                "recording, and nothing is trained"
            )
    _check_plot(options.plot, logs)
    profiles = [replay_recording(options, log, names) for log in logs]
    refuse_other_settings(profiles, logs)
    return profiles, report_on(options, profiles)


def _check_plot(plot: Path | None, inputs: Sequence[Path]) -> None:
    """Find out before the work whether its result can be drawn."""
    if plot is None:
        return
    checked_target(plot, force=True, inputs=inputs)
    require_drawing(page=plot.suffix == ".html")


@working_on("drawing")
def _draw(
    plot: Path, report: AutoswitchProfileReport, profiles: Sequence[Profile]
) -> None:
    from step_cli.plots.profile_panels import Drawing, LayerCurves
    from step_cli.plots.profile_plot import draw_profile

    first, *others = [profile.curves.curves() for profile in profiles if profile.curves]
    layers = None
    if profiles[0].layers is not None:
        names = [layer.name for layer in profiles[0].header.layers]
        layers = LayerCurves(names, *profiles[0].layers.curves())
    draw_profile(plot, Drawing(report, first, others, layers))


def _criteria(chosen: Sequence[str]) -> Sequence[str]:
    for name in chosen:
        if name not in CRITERION_NAMES:
            hint = nearest(name, CRITERION_NAMES)
            raise UsageError(f"--criterion: no such criterion {name!r}{hint}")
    return list(dict.fromkeys(chosen)) or CRITERION_NAMES
