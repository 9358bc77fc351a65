"""Replaying what was recorded, in one pass over each file."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from step_cli.commands.profile_settings import Settings, settings_of
from step_cli.config import AutoswitchProfileConfig
from step_cli.core.layer_view import LayerView
from step_cli.core.profile_curves import CurveRecorder
from step_cli.core.replay import Replay
from step_cli.core.sample_block import SampleBlock
from step_cli.core.what_if import ANSWERED, OtherBeta2
from step_cli.errors import InputError, UsageError
from step_cli.formats.recording import Recording
from step_cli.formats.variance_log import VarianceHeader
from step_cli.train_config import SwitchSection, TrainConfig, load_config

WORST = 0.01  # relative error that an answer for another beta2 may have


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


def recorded_runs(source: Path) -> list[Path]:
    """The recordings that ``source`` names: itself, that of a run, or of several seeds.

    Raises:
        InputError: There is none.
    """
    if not source.is_dir():
        if not source.exists():
            raise InputError("no such file or directory", file=source)
        if source.suffix != ".jsonl":
            raise InputError(
                "give a training configuration (.toml), a run directory or a "
                "variance.jsonl",
                file=source,
            )
        return [source]
    log = source / "variance.jsonl"
    logs = [log] if log.is_file() else sorted(source.glob("seed-*/variance.jsonl"))
    if not logs:
        raise InputError("no variance.jsonl in it: not a run directory", file=source)
    return logs


def replay_recording(
    options: AutoswitchProfileConfig, log: Path, names: Sequence[str]
) -> Profile:
    """Replay the criteria over one recording.

    Raises:
        InputError: It is damaged, or holds no step.
        NonFiniteError: It holds NaN or infinity.
        UsageError: An option contradicts it.
    """
    recording = Recording(log)
    header = recording.header
    other = _other_beta2(options, header, names)
    run = _config_beside(log)
    switch = SwitchSection() if run is None else run.switch
    recorded = 0 if header.steps else recording.count()
    if not header.steps and not recorded:
        raise InputError("no step is recorded in it", file=log)
    settings = settings_of(options, header, switch, recorded)
    profile = Profile.begin(
        settings,
        names,
        header,
        draw=options.plot is not None,
        seed=None if run is None else run.train.seed,
    )
    for block in recording.blocks():
        left = None if options.steps is None else options.steps - profile.steps
        profile.observe((other or _same)(block[:left]))
        if left is not None and left <= len(block):
            break
    if not profile.steps:
        raise InputError("no step is recorded in it", file=log)
    if recording.torn:
        profile.notes.append("the last line is torn and left out")
    if options.steps is not None and profile.steps < options.steps:
        profile.notes.append(
            f"--steps {options.steps}: only {profile.steps} are recorded"
        )
    if other is not None:
        _refuse_inexact(other, profile, log)
    return profile


def _same(block: SampleBlock) -> SampleBlock:
    return block


def _config_beside(log: Path) -> TrainConfig | None:
    path = log.with_name("config.toml")
    return load_config(path) if path.is_file() else None


def _other_beta2(
    options: AutoswitchProfileConfig, header: VarianceHeader, names: Sequence[str]
) -> OtherBeta2 | None:
    """What answers for another beta2 than the recorded one, if one is asked for."""
    asked, recorded = options.beta2, header.beta2
    if asked is None or recorded is None or asked == recorded:
        return None
    unknown = [name for name in names if name not in ANSWERED]
    if unknown:
        raise UsageError(
            f"--beta2: the run was recorded with {recorded:g}, and its sums cannot "
            f"answer {', '.join(unknown)} for another: train again with it, or ask "
            + " ".join(f"--criterion {name}" for name in ANSWERED)
        )
    if options.plot is not None:
        raise UsageError("--plot: nothing to draw for another beta2 than the recorded")
    return OtherBeta2(recorded, asked)


def _refuse_inexact(other: OtherBeta2, profile: Profile, log: Path) -> None:
    if any("not recorded" in note for note in profile.notes):
        raise UsageError(
            "--beta2: steps are missing from the recording, and without them its sums "
            "cannot answer for another",
            file=log,
        )
    if other.worst > WORST:
        raise UsageError(
            f"--beta2: too far from the recorded one: rounding in the recorded sums "
            f"could change the answer by {other.worst:.0%}; train again with it",
            file=log,
        )
