"""The variance change of a recorded run, with each criterion's switch point."""

from collections.abc import Mapping
from pathlib import Path

from step_cli.core.autoswitch import WindowMean
from step_cli.core.replay import Replay
from step_cli.formats.variance_log import read_samples
from step_cli.training.curves import pyplot, save_figure

POINTS = 5000  # drawn at most: a curve of millions of steps is thinned


def draw_profile(
    path: Path,
    log: Path,
    replays: Mapping[str, Replay],
    *,
    eps: float,
    window: int,
) -> None:
    """Draw change per coordinate and norm of v on log axes (the paper's Figure 3).

    Raises:
        MissingError: matplotlib is not installed.
    """
    plt = pyplot()
    every = 1 + sum(1 for _ in read_samples(log)) // POINTS
    mean = WindowMean(window)
    steps, change, windowed, norm = [], [], [], []
    for sample in read_samples(log):
        value = mean.add(sample.dv_l1 / sample.d)
        if sample.step % every == 0 or every == 1:
            steps.append(sample.step)
            change.append(sample.dv_l1 / sample.d)
            windowed.append(float("nan") if value is None else value)
            norm.append(sample.v_l1 / sample.d)
    figure, panel = plt.subplots(figsize=(9, 5), layout="constrained")
    panel.plot(steps, norm, color="silver", label="mean v")
    panel.plot(steps, change, color="lightskyblue", label="mean |change of v|")
    panel.plot(steps, windowed, color="tab:blue", label=f"its mean over {window} steps")
    panel.axhline(eps, color="black", linestyle=":", label=f"eps = {eps:g}")
    for number, (name, replay) in enumerate(replays.items()):
        if replay.switch_step is not None:
            label = f"{name}: {replay.switch_step} ({replay.reason})"
            color = f"C{number + 1}"
            panel.axvline(replay.switch_step, color=color, linewidth=1, label=label)
    panel.set_yscale("log")
    panel.set_xlabel("step")
    panel.legend(fontsize="small")
    panel.grid(alpha=0.3)
    save_figure(figure, path)
