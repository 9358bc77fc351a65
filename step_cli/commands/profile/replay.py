"""One run, and what the criteria of ``autoswitch-profile`` say of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from step_cli.autoswitch.criterion import VarianceSample
from step_cli.autoswitch.curves import CurveRecorder
from step_cli.autoswitch.layers import LayerReadiness
from step_cli.autoswitch.replay import Replay
from step_cli.autoswitch.variance_log import LayerSums, VarianceHeader
from step_cli.commands.profile.settings import Settings


@dataclass
class Profile:
    """One run, and what the criteria say of it.

    Attributes:
        settings: With what they were replayed.
        replays: By name, in the order they are shown.
        layers: The view by layer, and the layers' names; None where none is recorded.
        curves: What is drawn; None where nothing is.
        seed: Of the run, where that is known.
        steps: How many were looked at.
        notes: What a reader should know of the recording.
        last_step: The last that was looked at.
        has_gaps: Steps are missing from the recording.
    """

    settings: Settings
    replays: dict[str, Replay]
    layers: LayerReadiness | None = None
    curves: CurveRecorder | None = None
    header: VarianceHeader = field(default_factory=VarianceHeader)
    seed: int | None = None
    steps: int = 0
    notes: list[str] = field(default_factory=list)
    last_step: int = 0
    has_gaps: bool = False

    @classmethod
    def begin(
        cls,
        settings: Settings,
        names: Sequence[str],
        header: VarianceHeader,
        *,
        draw: bool,
        seed: int | None,
    ) -> "Profile":
        """A profile that has seen no step yet."""
        sizes = [layer.d for layer in header.layers]
        view = LayerReadiness(
            sizes,
            window=settings.window,
            eps=settings.eps,
            relative_eps=settings.relative_eps,
        )
        return cls(
            settings,
            {name: settings.replay(name) for name in names},
            view if sizes else None,
            CurveRecorder(settings.beta2, settings.window) if draw else None,
            header,
            seed,
        )

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
