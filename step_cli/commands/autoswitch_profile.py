"""``autoswitch-profile``: where each criterion would switch, on a recorded run."""

from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from step_cli.config import AutoswitchProfileConfig, to_step
from step_cli.core.autoswitch import (
    CRITERION_NAMES,
    SwitchRule,
    make_criterion,
    window_of,
)
from step_cli.core.replay import Replay
from step_cli.errors import InputError, UsageError
from step_cli.formats.target import checked_target
from step_cli.formats.variance_log import read_header, read_samples
from step_cli.reports import AutoswitchProfileReport, CriterionReport
from step_cli.train_config import SwitchSection, load_config

PLOT_SUFFIXES = (".svg", ".png")


@dataclass(frozen=True)
class Settings:
    """What the criteria are replayed with; steps are counted from 1."""

    beta2: float
    eps: float
    window: int
    t_min: int
    t_max: int
    fixed_step: int


def run(config: AutoswitchProfileConfig) -> AutoswitchProfileReport:
    """Replay the criteria over a recorded run.

    Raises:
        InputError: The recording is missing or damaged.
        NonFiniteError: It holds NaN or infinity.
        UsageError: An option is wrong, or contradicts the recording.
    """
    names = _criteria(config.criterion)
    if config.plot is not None and config.plot.suffix not in PLOT_SUFFIXES:
        raise UsageError(f"--plot: use one of {', '.join(PLOT_SUFFIXES)}")
    log = _find_log(config.source)
    if config.plot is not None:
        checked_target(config.plot, force=True, inputs=[log])
    settings, steps = _settings(config, log)
    replays = {name: Replay(_rule(name, settings)) for name in names}
    for sample in read_samples(log):
        for replay in replays.values():
            replay.observe(sample)
    if config.plot is not None:
        from step_cli.training.profile_plot import draw_profile

        draw_profile(
            config.plot, log, replays, eps=settings.eps, window=settings.window
        )
    recommended = _recommended(replays)
    fired = [replay.switch_step is not None for replay in replays.values()]
    return AutoswitchProfileReport(
        ok=all(fired) if config.criterion else any(fired),
        steps=steps,
        beta2=settings.beta2,
        eps=settings.eps,
        window=settings.window,
        t_min=settings.t_min,
        t_max=settings.t_max,
        criteria=[_row(name, replay) for name, replay in replays.items()],
        recommended=recommended,
        advice=[
            line
            for name, replay in replays.items()
            for line in _advice(name, replay, steps)
        ],
    )


def _criteria(asked: Sequence[str]) -> Sequence[str]:
    for name in asked:
        if name not in CRITERION_NAMES:
            close = get_close_matches(name, CRITERION_NAMES, n=1)
            hint = f"did you mean {close[0]}" if close else ", ".join(CRITERION_NAMES)
            raise UsageError(f"--criterion: no such criterion {name!r}; {hint}")
    return list(dict.fromkeys(asked)) or CRITERION_NAMES


def _find_log(source: Path) -> Path:
    if source.is_dir():
        log = source / "variance.jsonl"
        if not log.is_file():
            raise InputError(
                "no variance.jsonl in it: not a run directory", file=source
            )
        return log
    if not source.exists():
        raise InputError("no such file or directory", file=source)
    if source.suffix != ".jsonl":
        raise InputError("give a run directory or a variance.jsonl", file=source)
    return source


def _settings(config: AutoswitchProfileConfig, log: Path) -> tuple[Settings, int]:
    """The settings of the replay, and how many steps are recorded.

    Options come first, then the configuration of the run, then the header.
    """
    header = read_header(log)
    if None not in (config.beta2, header.beta2) and config.beta2 != header.beta2:
        raise UsageError(
            f"--beta2: the run was recorded with {header.beta2:g}, and its sums cannot "
            "answer for another; train again with it"
        )
    recorded = sum(1 for _ in read_samples(log))
    if recorded == 0:
        raise InputError("no step is recorded in it", file=log)
    run_config = log.with_name("config.toml")
    switch = load_config(run_config).switch if run_config.is_file() else SwitchSection()
    steps = header.steps or recorded
    beta2 = config.beta2 or header.beta2 or 0.999
    t_min = to_step(switch.t_min if config.t_min is None else config.t_min, steps)
    t_max = to_step(switch.t_max if config.t_max is None else config.t_max, steps)
    if t_min > t_max:
        raise UsageError(f"--t-min: {t_min} lies after t_max {t_max}")
    settings = Settings(
        beta2=beta2,
        eps=config.eps or switch.eps or header.eps or 1e-8,
        window=config.window or switch.window or window_of(beta2),
        t_min=t_min,
        t_max=t_max,
        fixed_step=max(1, to_step(config.step, steps)),
    )
    return settings, recorded


def _rule(name: str, settings: Settings) -> SwitchRule:
    criterion = make_criterion(
        name,
        beta2=settings.beta2,
        eps=None if name == "autoswitch-relative" else settings.eps,
        window=settings.window,
        step=settings.fixed_step,
    )
    return SwitchRule(criterion, settings.t_min, settings.t_max)


def _row(name: str, replay: Replay) -> CriterionReport:
    return CriterionReport(
        name=name,
        switch_step=replay.switch_step,
        reason=replay.reason,
        clipped=replay.clipped,
        raw_step=replay.raw_step,
        post_switch_change=replay.post_switch_change,
        threshold=replay.criterion.threshold,
        value=replay.value,
    )


def _recommended(replays: dict[str, Replay]) -> str | None:
    """AutoSwitch where its threshold decided, else ours, else where it was clipped to.

    The other criteria are baselines: both fire early by construction.
    """
    ours = ("autoswitch", "autoswitch-geometric", "autoswitch-relative")
    fired = [
        name
        for name in ours
        if name in replays and replays[name].switch_step is not None
    ]
    decided = [name for name in fired if not replays[name].clipped]
    return next(iter(decided + fired), None)


def _advice(name: str, replay: Replay, steps: int) -> list[str]:
    """Say in words where clipping, not the threshold, decided."""
    if not name.startswith("autoswitch"):
        return []
    rule, value = replay.rule, replay.first_value
    if replay.switch_step is None:
        if steps < rule.criterion.first_step:
            return [
                f"{name}: needs {rule.criterion.first_step} steps, has {steps}; lower "
                "--window"
            ]
        return [f"{name}: never below {rule.criterion.threshold:.3g} in {steps} steps"]
    if not replay.clipped:
        return []
    if replay.reason == "t_max":
        shown = "not measured yet" if replay.value is None else f"{replay.value:.3g}"
        return [
            f"{name}: t_max decided, not the threshold: there the change was {shown} "
            f"against {rule.criterion.threshold:.3g}"
        ]
    return [
        f"{name}: the first step it may fire at decided, not the threshold: there the "
        f"change was {value:.3g}, already below {rule.criterion.threshold:.3g}"
    ]
