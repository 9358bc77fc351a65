"""The report of ``autoswitch-profile`` from what was replayed."""

import math
import statistics
from collections.abc import Sequence

from step_cli.autoswitch.autoswitch import (
    AutoSwitch,
    Fixed,
    RelativeAutoSwitch,
    RelativeNorm,
    theorem_1_minimum,
)
from step_cli.autoswitch.replay import Replay
from step_cli.commands.profile.advice import reason_for, recommended, warnings_on
from step_cli.commands.profile.replay import Profile, Settings
from step_cli.config.commands import AutoswitchProfileConfig
from step_cli.reports import (
    AutoswitchProfileReport,
    CriterionReport,
    LayerReport,
    OtherEps,
    SeedReport,
    Spread,
)


def report_on(
    options: AutoswitchProfileConfig, profiles: Sequence[Profile]
) -> AutoswitchProfileReport:
    """The report; its rows are those of the first seed."""
    first = profiles[0]
    settings, runs = first.settings, [profile.replays for profile in profiles]
    rows = _rows(first)
    choice = recommended(runs)
    shown = next((row for row in rows if row.name == choice), None)
    if shown is None and len(rows) == 1:
        shown = rows[0]
    fired = [replay.switch_step is not None for run in runs for replay in run.values()]
    notes = [note for profile in profiles for note in profile.notes]
    notes += [_beyond(profile) for profile in profiles if profile.beyond]
    warnings = warnings_on(first.replays, settings, first.steps)
    return AutoswitchProfileReport(
        ok=all(fired) if options.criterion else any(fired),
        steps=first.steps,
        total_steps=settings.total_steps,
        beta2=settings.beta2,
        eps=settings.eps,
        window=settings.window,
        t_min=settings.t_min,
        t_max=settings.t_max,
        theorem_1_minimum=theorem_1_minimum(settings.beta2),
        criteria=[_with_spread(row, runs) for row in rows],
        recommended=choice,
        recommendation=reason_for(choice, runs),
        switch_toml=None if shown is None else shown.switch_toml,
        raw_toml=None if shown is None else shown.raw_toml,
        layers=_layers(first, None if shown is None else shown.switch_step),
        seeds=[_seed(profile) for profile in profiles] if len(profiles) > 1 else [],
        run_dir=None if options.out is None else str(options.out),
        advice=list(dict.fromkeys(notes)) + warnings,
    )


def _beyond(profile: Profile) -> str:
    return (
        f"steps {profile.settings.total_steps + 1} to {profile.last_step} come after "
        "the end of the training: they show how v goes on, and no switch lies there"
    )


def _rows(profile: Profile) -> list[CriterionReport]:
    return [_row(name, replay, profile) for name, replay in profile.replays.items()]


def _row(name: str, replay: Replay, profile: Profile) -> CriterionReport:
    settings, step = profile.settings, replay.switch_step
    other_eps = replay.other_eps or {}
    minimum = theorem_1_minimum(settings.beta2)
    return CriterionReport(
        name=name,
        switch_step=step,
        reason=replay.reason,
        decided_by=replay.decided_by,
        clipped=replay.clipped,
        raw_step=replay.raw_step,
        post_switch_change=replay.post_switch_change,
        v_growth=replay.v_growth,
        threshold=replay.criterion.threshold,
        value=replay.value,
        margin=replay.margin,
        meets_theorem_1=None if step is None else step >= minimum,
        other_eps=[OtherEps(eps=eps, switch_step=at) for eps, at in other_eps.items()],
        switch_toml=_switch_toml(name, replay, settings),
        raw_toml=_raw_toml(name, replay, settings),
    )


def _with_spread(
    row: CriterionReport, runs: Sequence[dict[str, Replay]]
) -> CriterionReport:
    if len(runs) == 1:
        return row
    replays = [run[row.name] for run in runs]
    steps = [replay.switch_step for replay in replays]
    changes = [replay.post_switch_change for replay in replays]
    return row.model_copy(
        update={"switch_steps": _spread(steps), "post_switch_changes": _spread(changes)}
    )


def _spread(given: Sequence[float | None]) -> Spread | None:
    values = [value for value in given if value is not None]
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return Spread(
        count=len(values),
        mean=statistics.fmean(values),
        std=std,
        min=min(values),
        max=max(values),
    )


def _seed(profile: Profile) -> SeedReport:
    return SeedReport(seed=profile.seed, steps=profile.steps, criteria=_rows(profile))


def _layers(profile: Profile, step: int | None) -> list[LayerReport]:
    """The last to be ready first: never, then by falling step."""
    view = profile.layers
    if view is None:
        return []
    found = view.at(step)
    reports = []
    for at, layer in enumerate(profile.header.layers):
        change, relative = (None, None) if found is None else (c[at] for c in found)
        reports.append(
            LayerReport(
                name=layer.name,
                d=layer.d,
                ready_step=int(view.ready[at]) or None,
                relative_ready_step=int(view.relative_ready[at]) or None,
                change=None if change is None else float(change),
                relative_change=None if relative is None else float(relative),
            )
        )
    return sorted(reports, key=_latest_first)


def _latest_first(layer: LayerReport) -> tuple[float, float, float]:
    steps = [layer.ready_step, layer.relative_ready_step]
    late = [-(math.inf if step is None else step) for step in steps]
    return late[0], late[1], -(layer.change or 0.0)


def _switch_toml(name: str, replay: Replay, settings: Settings) -> str | None:
    """The ``[switch]`` block with which `train` switches there; None if it never does.

    Steps are absolute: the block holds for a training of as many steps.
    """
    if replay.switch_step is None:
        return None
    said = f"{replay.switch_step} ({replay.reason})"
    return _block(name, replay, settings, said, settings.t_min, settings.t_max)


def _raw_toml(name: str, replay: Replay, settings: Settings) -> str | None:
    """The block without clipping; None if the training then never switches."""
    step, steps = replay.raw_step, settings.total_steps
    if step is None or step > steps:
        return None
    said = f"{step}, without clipping"
    return _block(name, replay, settings, said, 0, steps)


def _block(
    name: str, replay: Replay, settings: Settings, said: str, t_min: int, t_max: int
) -> str:
    lines = [
        f"# switches after step {said}, in a training of {settings.total_steps} steps",
        f"# with train.betas = [..., {settings.beta2!r}]",
        "[switch]",
        f'criterion = "{name}"',
    ]
    if isinstance(replay.criterion, Fixed):
        return "\n".join([*lines, f"step = {settings.fixed_step}"]) + "\n"
    if isinstance(replay.criterion, AutoSwitch | RelativeAutoSwitch):
        eps = settings.eps_of(name)
        is_default = name == RelativeAutoSwitch.name and eps == 1 - settings.beta2
        # As a number it would be 0.050000000000000044 for a beta2 of 0.95.
        lines.append("# eps = 1 - beta2" if is_default else f"eps = {eps!r}")
    if not isinstance(replay.criterion, RelativeNorm):
        lines.append(f"window = {settings.window}")
    return "\n".join([*lines, f"t_min = {t_min}", f"t_max = {t_max}"]) + "\n"
