"""What ``autoswitch-profile`` advises: a criterion, and who decided where none did.

A criterion decides by its threshold; clipping decides where t_min, the window or t_max
set the step.
"""

import math
from collections.abc import Mapping, Sequence

from step_cli.autoswitch.autoswitch import (
    RelativeAutoSwitch,
    noise_below,
    theorem_1_minimum,
)
from step_cli.autoswitch.replay import OUTGROWN, STEPS_AFTER, Replay
from step_cli.commands.profile.replay import Settings

Replays = Mapping[str, Replay]

# The others are baselines: both fire early by construction.
OURS = ("autoswitch", "autoswitch-geometric", "autoswitch-relative")


def recommended(runs: Sequence[Replays]) -> str | None:
    """AutoSwitch where its threshold decided, else the next whose threshold did.

    Where clipping decided for all, the first that switched. Those after whose switch
    point v grows too far come last. With several seeds, what holds for all of them.
    """
    fired = [
        name
        for name in OURS
        if all(name in run and run[name].switch_step is not None for run in runs)
    ]
    return min(
        fired,
        key=lambda name: (
            _outgrown(name, runs),
            any(run[name].clipped for run in runs),
        ),
        default=None,
    )


def _outgrown(name: str, runs: Sequence[Replays]) -> bool:
    return any(run[name].outgrown for run in runs)


def reason_for(name: str | None, runs: Sequence[Replays]) -> str:
    """Why ``name`` is recommended, in a sentence."""
    ours = [other for other in OURS if other in runs[0]]
    if name is None:
        return (
            "no AutoSwitch rule switched in every run"
            if ours
            else "none: the chosen rules are baselines"
        )
    unsafe = _outgrown(name, runs)  # then so are all that switched in every run
    grown = " and ".join(other for other in ours if _outgrown(other, runs))
    growing = f"v grows too far after the switch of {grown}" if grown else ""
    if any(run[name].clipped for run in runs):
        words = f"{name}, though clipping decided{_somewhere(name, runs)}: "
        other = ""
        if grown and not unsafe:
            words, other = f"{words}{growing}, and ", "other "
        words += f"no {other}AutoSwitch rule was decided by its threshold alone"
    else:
        words = _threshold_decided(name, ours[: ours.index(name)], runs, unsafe=unsafe)
    return f"{words}; {growing}, so none is safe" if unsafe else words


def _threshold_decided(
    name: str, before: Sequence[str], runs: Sequence[Replays], *, unsafe: bool
) -> str:
    """What sets a rule that its threshold decided apart from those ``before`` it."""
    replay = runs[0][name]
    every = " for every seed" if len(runs) > 1 else ""
    words = (
        f"{name}: its threshold decided{every}, at {_steps(name, runs)}, between the "
        "clips"
    )
    for other in before:
        if any(run[other].switch_step is None for run in runs):
            words += f"; {other} never switched"
        elif _outgrown(other, runs) and not unsafe:
            words += f"; v grows too far after the switch of {other}"
        else:
            words += f"; {other} was clipped"
    lower = [
        f"{other} (step {row.switch_step})"
        for other, row in runs[0].items()
        if None not in (row.post_switch_change, replay.post_switch_change)
        and row.post_switch_change < replay.post_switch_change  # type: ignore[operator]
    ]
    if replay.post_switch_change is not None:
        words += (
            f"; v changed less after {', '.join(lower)}"
            if lower
            else "; no chosen rule left v to change less"
        )
    return words


def _steps(name: str, runs: Sequence[Replays]) -> str:
    steps = sorted({run[name].switch_step or 0 for run in runs})
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"


def _somewhere(name: str, runs: Sequence[Replays]) -> str:
    clipped = sum(run[name].clipped for run in runs)
    return f" for {clipped} of {len(runs)} seeds" if len(runs) > 1 else ""


def warnings_on(replays: Replays, settings: Settings, steps: int) -> list[str]:
    """One line for each criterion that its threshold did not decide.

    Args:
        replays: What was replayed, by name.
        settings: With what.
        steps: How many steps were looked at.
    """
    lines = [_warning(replay, replays, settings, steps) for replay in replays.values()]
    return [*filter(None, lines), *_growing(replays), *_early(replays, settings)]


def _warning(replay: Replay, replays: Replays, settings: Settings, steps: int) -> str:
    if replay.switch_step is None:
        return _never(replay, replays, settings, steps)
    if not replay.clipped:
        return ""
    name, value = replay.criterion.name, _shown(replay.value)
    against = _shown(replay.criterion.threshold)
    if replay.reason == "t_max":
        words = f"{name}: t_max decided, not the threshold: "
        first = replay.criterion.first_step
        if replay.switch_step < first:
            return f"{words}its test needs {first} steps{_lower(replay)}"
        words += f"its value was {value} there, against {against}"
        return words + _what_would_have(replay, replays)
    side = "above" if replay.criterion.above else "below"
    who = {"window": "the window"}.get(replay.decided_by, replay.decided_by)
    words = (
        f"{name}: {who} decided, not the threshold: at the first step it may fire at "
        f"its value was {value}, already {side} {against}"
    )
    return words + _noise(replay, settings) + _what_would_have(replay, replays)


def _lower(replay: Replay) -> str:
    return "; lower --window" if replay.criterion.window > 1 else ""


def _never(replay: Replay, replays: Replays, settings: Settings, steps: int) -> str:
    rule = replay.rule
    first = rule.criterion.first_step
    if rule.criterion.threshold is None:
        return (
            f"{rule.criterion.name}: its step {first} is not among the "
            f"{min(steps, settings.total_steps)} looked at"
        )
    looked_at = min(steps, settings.total_steps)
    if looked_at < first:
        return f"{rule.criterion.name}: needs {first} steps, has {looked_at}" + _lower(
            replay
        )
    words = (
        f"{rule.criterion.name}: its threshold of {_shown(rule.criterion.threshold)} "
        f"was not passed in {looked_at} steps"
    )
    return words + _what_would_have(replay, replays)


def _what_would_have(replay: Replay, replays: Replays) -> str:
    """The thresholds that would have decided, as a range; else the rules that did."""
    if replay.other_eps is None:
        raw = replay.raw_step
        if raw is None or raw == replay.switch_step:
            return ""
        return f"; without clipping, step {raw}"
    if not replay.other_eps:
        did = [
            f"{name} did, at step {other.switch_step}"
            for name, other in replays.items()
            if name in OURS and other.switch_step is not None and not other.clipped
        ]
        words = "; no eps would have: between the clips its value fell no further"
        return words + "".join(f"; {each}" for each in did)
    thresholds = list(replay.other_eps.items())
    (high, first), (low, last) = thresholds[0], thresholds[-1]
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


def _growing(replays: Replays) -> list[str]:
    """After whose switch v outgrows what would be frozen."""
    found = [
        f"{name} ({f'{growth:.3g} times its value' if growth else 'from 0'} at step "
        f"{replay.switch_step})"
        for name, replay in replays.items()
        for growth in [replay.v_growth]
        if replay.outgrown
    ]
    if not found:
        return []
    return [
        f"v grows to more than {OUTGROWN:g} times its value in the {STEPS_AFTER} steps "
        f"after the switch of {', '.join(found)}: frozen there it would be too small, "
        "steps too long, and training may not recover"
    ]


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
