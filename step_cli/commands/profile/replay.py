"""One run, and the criteria of ``autoswitch-profile`` replayed on it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from step_cli.autoswitch.autoswitch import (
    RelativeAutoSwitch,
    SwitchRule,
    make_criterion,
    window_of,
)
from step_cli.autoswitch.criterion import VarianceSample
from step_cli.autoswitch.curves import CurveRecorder
from step_cli.autoswitch.layers import LayerReadiness
from step_cli.autoswitch.replay import Replay
from step_cli.autoswitch.variance_log import LayerSums, VarianceHeader
from step_cli.config.commands import AutoswitchProfileConfig
from step_cli.config.train import SwitchSection
from step_cli.config.types import to_step
from step_cli.errors import UsageError

FIXED_FRACTION = 0.25  # of the training, where no step is given


@dataclass(frozen=True)
class Settings:
    """What decides; steps are counted from 1.

    Attributes:
        beta2: Adam's.
        eps: Threshold of the two AutoSwitch rules of the paper.
        relative_eps: That of ``autoswitch-relative``.
        window: Steps averaged over.
        t_min: No switch at this step or before.
        t_max: A switch after this step at the latest.
        t_max_is_asked: By an option or the run's configuration; else it is a default.
        fixed_step: Of ``fixed``.
        total_steps: Of the training that is to switch: none after them.
        most_steps: That can be looked at and switched at.
    """

    beta2: float
    eps: float
    relative_eps: float
    window: int
    t_min: int
    t_max: int
    t_max_is_asked: bool
    fixed_step: int
    total_steps: int
    most_steps: int = field(compare=False)

    def eps_of(self, criterion: str) -> float:
        """The threshold of one of the three AutoSwitch rules."""
        relative = criterion == RelativeAutoSwitch.name
        return self.relative_eps if relative else self.eps

    def replay(self, name: str) -> Replay:
        """A fresh replay of one criterion."""
        criterion = make_criterion(
            name,
            beta2=self.beta2,
            eps=self.eps_of(name),
            window=self.window,
            step=self.fixed_step,
        )
        # A default t_max does not decide for a window that never fills.
        fills = criterion.first_step <= self.most_steps
        t_max = self.t_max if self.t_max_is_asked or fills else None
        rule = SwitchRule(criterion, self.t_min, t_max)
        return Replay(rule, self.total_steps, self.beta2)


def settings_of(
    options: AutoswitchProfileConfig,
    header: VarianceHeader,
    switch: SwitchSection | None,
    recorded: int,
) -> Settings:
    """The settings: options come first, then the run's configuration, then the header.

    Args:
        options: What was typed.
        header: Of the recording.
        switch: ``[switch]`` of the run; None where its configuration is not known.
        recorded: Steps that are there; the training has as many, where the header
            holds no number.

    Raises:
        UsageError: t_min lies after t_max.
    """
    steps = header.steps or recorded
    t_max_is_asked = options.t_max is not None or switch is not None
    switch = switch or SwitchSection()
    beta2 = options.beta2 or header.beta2 or 0.999
    t_min = to_step(switch.t_min if options.t_min is None else options.t_min, steps)
    t_max = to_step(switch.t_max if options.t_max is None else options.t_max, steps)
    if t_min > t_max:
        if options.t_min is None:
            raise UsageError(f"--t-max: {t_max} lies before t_min {t_min}")
        raise UsageError(f"--t-min: {t_min} lies after t_max {t_max}")
    # One key of the run is the threshold of whichever rule it names.
    ours = RelativeAutoSwitch.name
    alone = options.eps if list(options.criterion) == [ours] else None
    run_eps = switch.eps if switch.criterion != ours else None
    run_relative = switch.eps if switch.criterion == ours else None
    step = switch.step if options.step is None else options.step
    return Settings(
        beta2=beta2,
        eps=options.eps or run_eps or header.eps or 1e-8,
        relative_eps=alone or run_relative or 1 - beta2,
        window=options.window or switch.window or window_of(beta2),
        t_min=t_min,
        t_max=t_max,
        t_max_is_asked=t_max_is_asked,
        fixed_step=max(1, to_step(FIXED_FRACTION if step is None else step, steps)),
        total_steps=steps,
        most_steps=min(recorded, steps, options.steps or steps),
    )


class Profile:
    """One run, fed step by step, and the criteria replayed on it.

    Args:
        settings: With what the criteria are replayed.
        names: The criteria, in the order they are shown.
        header: Of the recording.
        draw: Keep the curves that are drawn.
        seed: Of the run, where that is known.

    Attributes:
        replays: By name of the criterion.
        layers: When each layer is ready; None where none is recorded.
        curves: What is drawn; None where nothing is.
        steps: How many were looked at.
        last_step: The last of them.
        has_gaps: Steps are missing from the recording.
        notes: What a reader should know of the recording.
    """

    def __init__(
        self,
        settings: Settings,
        names: Sequence[str],
        header: VarianceHeader,
        *,
        draw: bool,
        seed: int | None,
    ) -> None:
        self.settings, self.header, self.seed = settings, header, seed
        self.replays = {name: settings.replay(name) for name in names}
        self.layers: LayerReadiness | None = None
        if header.layers:
            self.layers = LayerReadiness(
                [layer.d for layer in header.layers],
                window=settings.window,
                eps=settings.eps,
                relative_eps=settings.relative_eps,
            )
        curves = CurveRecorder(settings.beta2, settings.window)
        self.curves = curves if draw else None
        self.steps = self.last_step = 0
        self.has_gaps = False
        self.notes: list[str] = []

    @property
    def beyond(self) -> bool:
        """Whether steps were recorded after the end of the training."""
        return self.last_step > self.settings.total_steps

    @property
    def is_decided(self) -> bool:
        """Whether no criterion needs another step."""
        return all(each.done_by(self.last_step) for each in self.replays.values())

    def update(self, sample: VarianceSample, layers: LayerSums) -> None:
        """Take the next step in."""
        if sample.step != self.last_step + 1 and not self.has_gaps:
            self.has_gaps = True
            self.notes.append(
                f"not recorded are some steps before step {sample.step}: windows count "
                "the steps that are"
            )
        self.last_step = sample.step
        self.steps += 1
        for replay in self.replays.values():
            replay.update(sample)
        if self.curves is not None:
            self.curves.update(sample)
        if layers and self.layers is not None:
            self.layers.update(sample.step, layers)
