"""A dense run that is recorded until the switch criteria have all they need."""

from collections.abc import Callable
from pathlib import Path

from typing_extensions import override

from step_cli.autoswitch.criterion import VarianceSample
from step_cli.autoswitch.variance_log import LayerSums
from step_cli.config.distill import DistillSection
from step_cli.config.train import TrainConfig, to_toml
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.training.callbacks import Callback
from step_cli.training.distributed import Processes, default_device
from step_cli.training.progress import progress_callbacks
from step_cli.training.records import Records, save_text, variance_header
from step_cli.training.setup import OPTIMIZER_OPTIONS, set_up
from step_cli.training.trainer import Trainer

NEVER = 10**15  # steps: no evaluation, no checkpoint
IsEnough = Callable[[VarianceSample, LayerSums], bool]


class VarianceCallback(Callback):
    """Passes on what each step did to the variance, until that is enough.

    Args:
        optimizer: Measures it.
        is_enough: Is given each step; returns True when no more is needed.
    """

    def __init__(self, optimizer: SparseOptimizer, is_enough: IsEnough) -> None:
        self._optimizer, self._is_enough = optimizer, is_enough
        self.enough = False

    @override
    def on_step(self, step: int, loss: float, lr: float) -> None:
        sample = self._optimizer.variance_sample()
        assert sample is not None, "a dense run records every step"
        self.enough = self._is_enough(sample, self._optimizer.layer_changes())


class DenseRun:
    """A dense training that records each step in the directory ``path``.

    Args:
        config: Whatever its recipe is, the run is dense.
        path: Exists and is empty; a run directory then.

    Attributes:
        header: The first line of the recording.

    Raises:
        StepError: Something the user can mend; also by :meth:`record`.
    """

    def __init__(self, config: TrainConfig, path: Path) -> None:
        config = dense_twin(config)
        self._setup = set_up(config, Processes(default_device()), record=True)
        self.header = variance_header(config, self._setup.model, self._setup.optimizer)
        self._path = path
        save_text(path / "config.toml", to_toml(config))
        rarely = {"eval_every": NEVER, "checkpoint_every": NEVER}
        train = config.train.model_copy(update=rarely)
        self._config = config.model_copy(update={"train": train})

    def record(self, is_enough: IsEnough, *, last_step: int) -> None:
        """Train up to ``last_step``, or until enough is recorded."""
        setup = self._setup
        callback = VarianceCallback(setup.optimizer, is_enough)
        with (
            Records(self._path, self.header) as records,
            progress_callbacks(setup.optimizer, last_step) as progress,
        ):
            callbacks = [callback, *progress]
            trainer = Trainer(
                self._config, setup, records, lambda: None, callbacks, last_step
            )
            trainer.run(lambda: callback.enough)


def dense_twin(config: TrainConfig) -> TrainConfig:
    """The configuration with the recipe `dense`; no switch, no teacher from it on."""
    kept = OPTIMIZER_OPTIONS & config.sparsity.options.keys()
    options = {key: config.sparsity.options[key] for key in sorted(kept)}
    dense = config.sparsity.model_copy(update={"recipe": "dense", "options": options})
    distill = config.distill
    if distill.start == "switch":
        distill = DistillSection()
    return config.model_copy(update={"sparsity": dense, "distill": distill})
