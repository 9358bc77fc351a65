"""Which criterion to take, why, and the ``[switch]`` block that makes it so."""

from collections.abc import Mapping, Sequence

from step_cli.commands.profile_settings import Settings
from step_cli.core.autoswitch import Fixed, RelativeNorm
from step_cli.core.replay import Replay

Replays = Mapping[str, Replay]

# The others are baselines: both fire early by construction.
OURS = ("autoswitch", "autoswitch-geometric", "autoswitch-relative")


def recommended(runs: Sequence[Replays]) -> str | None:
    """AutoSwitch where its threshold decided, else the next whose threshold did.

    Where clipping decided for all, the first that switched. With several seeds, what
    holds for all of them.
    """
    fired = [
        name
        for name in OURS
        if all(name in run and run[name].switch_step is not None for run in runs)
    ]
    decided = [name for name in fired if not any(run[name].clipped for run in runs)]
    return next(iter(decided + fired), None)


def reason_for(name: str | None, runs: Sequence[Replays]) -> str:
    """Why ``name`` is recommended, in a sentence."""
    asked = [other for other in OURS if other in runs[0]]
    if name is None:
        return (
            "no AutoSwitch rule switched in every run"
            if asked
            else "none: the rules asked for are baselines"
        )
    replay = runs[0][name]
    every = " for every seed" if len(runs) > 1 else ""
    if any(run[name].clipped for run in runs):
        return (
            f"{name}, though clipping decided{_somewhere(name, runs)}: no AutoSwitch "
            "rule was decided by its threshold alone"
        )
    words = (
        f"{name}: its threshold decided{every}, at step {replay.switch_step}, between "
        "the clips"
    )
    passed_over = [other for other in asked[: asked.index(name)]]
    if passed_over:
        words += f"; for {' and '.join(passed_over)} clipping decided"
    lower = [
        other
        for other, row in runs[0].items()
        if None not in (row.post_switch_change, replay.post_switch_change)
        and row.post_switch_change < replay.post_switch_change  # type: ignore[operator]
    ]
    if replay.post_switch_change is not None:
        words += (
            f"; v changed less after {', '.join(lower)}, which switched later"
            if lower
            else "; nothing asked for left v to change less"
        )
    return words


def _somewhere(name: str, runs: Sequence[Replays]) -> str:
    clipped = sum(run[name].clipped for run in runs)
    return f" for {clipped} of {len(runs)} seeds" if len(runs) > 1 else ""


def switch_toml(name: str, replay: Replay, settings: Settings) -> str | None:
    """The ``[switch]`` block with which `train` switches there; None if it never does.

    Steps are absolute: the block holds for a training of as many steps.
    """
    if replay.switch_step is None:
        return None
    said = f"{replay.switch_step} ({replay.reason})"
    return _block(name, replay, settings, said, settings.t_min, settings.t_max)


def raw_toml(name: str, replay: Replay, settings: Settings) -> str | None:
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
    if name in OURS:
        lines.append(f"eps = {settings.eps_of(name)!r}")
    if not isinstance(replay.criterion, RelativeNorm):
        lines.append(f"window = {settings.window}")
    return "\n".join([*lines, f"t_min = {t_min}", f"t_max = {t_max}"]) + "\n"
