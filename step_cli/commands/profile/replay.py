"""One run, and what the criteria of ``autoswitch-profile`` say of it."""

from collections.abc import Sequence

from step_cli.autoswitch.criterion import VarianceSample
from step_cli.autoswitch.curves import CurveRecorder
from step_cli.autoswitch.layers import LayerReadiness
from step_cli.autoswitch.variance_log import LayerSums, VarianceHeader
from step_cli.commands.profile.settings import Settings


class Profile:
    """One run, fed step by step, and what the criteria say of it.

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
        """Whether nothing asked for needs another step."""
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
