"""One run, and what the criteria of ``autoswitch-profile`` say of it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from step_cli.autoswitch.layer_view import LayerView
from step_cli.autoswitch.profile_curves import CurveRecorder
from step_cli.autoswitch.replay import Replay
from step_cli.autoswitch.sample_block import SampleBlock
from step_cli.autoswitch.variance_log import VarianceHeader
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
        last_step: The last of them.
        notes: What a reader should know of the recording.
    """

    settings: Settings
    replays: dict[str, Replay]
    layers: LayerView | None = None
    curves: CurveRecorder | None = None
    header: VarianceHeader = field(default_factory=VarianceHeader)
    seed: int | None = None
    steps: int = 0
    notes: list[str] = field(default_factory=list)
    last_step: int = 0

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
        view = LayerView(
            sizes,
            window=settings.window,
            eps=settings.eps,
            relative_eps=settings.relative_eps,
        )
        return cls(
            settings,
            {name: settings.replay(name) for name in names},
            view if sizes else None,
            CurveRecorder(settings.window) if draw else None,
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

    def observe(self, block: SampleBlock) -> None:
        """Take the next steps in."""
        if not len(block):
            return
        first, last = int(block.step[0]), int(block.step[-1])
        whole = self.last_step + 1 == first and last - first + 1 == len(block)
        if not whole and not any("not recorded" in note for note in self.notes):
            self.notes.append(
                "not recorded are some steps before step "
                f"{last}: windows count the steps that are"
            )
        self.last_step, self.steps = last, self.steps + len(block)
        for replay in self.replays.values():
            replay.observe(block)
        if self.curves is not None:
            self.curves.observe(block)
        if self.layers is not None:
            for sums in block.layers:
                self.layers.observe(sums)
