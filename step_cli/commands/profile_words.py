"""Warnings of ``autoswitch-profile``: who decided where the threshold did not."""

import math

from step_cli.commands.profile_choice import OURS, Replays
from step_cli.commands.profile_settings import Settings
from step_cli.core.autoswitch import RelativeAutoSwitch, Staleness
from step_cli.core.replay import Replay
from step_cli.core.theory import noise_below, theorem_1_minimum


def warnings_on(replays: Replays, settings: Settings, steps: int) -> list[str]:
    """One line for each criterion that its threshold did not decide.

    Args:
        replays: What was replayed, by name.
        settings: With what.
        steps: How many steps were looked at.
    """
    lines = [_warning(replay, settings, steps) for replay in replays.values()]
    return [line for line in lines if line] + _early(replays, settings)


def _warning(replay: Replay, settings: Settings, steps: int) -> str:
    if replay.switch_step is None:
        return _never(replay, settings, steps)
    if not replay.clipped:
        return ""
    name, value = replay.criterion.name, _shown(replay.value)
    against = _shown(replay.criterion.threshold)
    if replay.reason == "t_max":
        words = f"{name}: t_max decided, not the threshold: "
        if replay.first_able is None:
            words += f"its window of {settings.window} steps was not full by then"
        else:
            words += f"its value was {value} there, against {against}"
        return words + _what_would_have(replay)
    side = "above" if isinstance(replay.criterion, Staleness) else "below"
    waits = replay.criterion.first_step > settings.t_min
    who = "the window" if waits else "t_min"
    words = (
        f"{name}: {who} decided, not the threshold: at the first step it may fire at "
        f"its value was {value}, already {side} {against}"
    )
    return words + _noise(replay, settings) + _what_would_have(replay)


def _never(replay: Replay, settings: Settings, steps: int) -> str:
    rule = replay.rule
    first = rule.criterion.first_step
    if rule.criterion.threshold is None:
        return (
            f"{rule.criterion.name}: its step {first} is not among the "
            f"{min(steps, settings.total_steps)} looked at"
        )
    if steps < first:
        return (
            f"{rule.criterion.name}: needs {first} steps, has {steps}; lower --window"
        )
    words = (
        f"{rule.criterion.name}: its threshold of {_shown(rule.criterion.threshold)} "
        f"was not passed in {min(steps, settings.total_steps)} steps"
    )
    return words + _what_would_have(replay)


def _what_would_have(replay: Replay) -> str:
    """The thresholds that would have decided, as a range."""
    ladder = replay.ladder
    if ladder is None:
        raw = replay.raw_step
        if raw is None or raw == replay.switch_step:
            return ""
        return f"; without clipping, step {raw}"
    if not ladder.steps:
        return "; no threshold would have: between the clips it fell no further"
    rungs = list(ladder.steps.items())
    (high, first), (low, last) = rungs[0], rungs[-1]
    if high == low:
        return f"; eps = {high:g} would have decided, at step {first}"
    return (
        f"; an eps from {high:g} (step {first}) down to {low:g} (step {last}) would "
        "have decided"
    )


def _noise(replay: Replay, settings: Settings) -> str:
    """Why eps cannot decide where gradients are small."""
    name = replay.criterion.name
    if name not in OURS or name == RelativeAutoSwitch.name or not replay.v_mean:
        return ""
    bound = noise_below(settings.eps, settings.beta2)
    size = math.sqrt(replay.v_mean)
    if not size < bound:
        return ""
    return (
        f" (gradients of {size:.1e}, root mean square, are below the {bound:.1e} at "
        "which noise alone keeps it there)"
    )


def _early(replays: Replays, settings: Settings) -> list[str]:
    """Who switches before Theorem 1 allows."""
    minimum = theorem_1_minimum(settings.beta2)
    names = [
        name
        for name, replay in replays.items()
        if replay.switch_step is not None and replay.switch_step < minimum
    ]
    if not names:
        return []
    return [
        f"Theorem 1 of the paper holds from step {minimum} on at beta2 "
        f"{settings.beta2:g}; before it: {', '.join(names)}"
    ]


def _shown(value: float | None) -> str:
    return "not measured" if value is None else f"{value:.3g}"
