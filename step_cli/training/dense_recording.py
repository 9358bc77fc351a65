"""A dense run that is recorded until the switch criteria have all they ask for."""

from collections.abc import Callable
from pathlib import Path

from typing_extensions import override

from step_cli.autoswitch.criterion import VarianceSample
from step_cli.autoswitch.variance_log import LayerSums, VarianceHeader
from step_cli.config.train import TrainConfig, to_toml
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.training.callbacks import Callback
from step_cli.training.distributed import Processes, default_device
from step_cli.training.progress import progress_callbacks
from step_cli.training.records import Records, save_text, variance_header
from step_cli.training.setup import OPTIMIZER_OPTIONS, set_up
from step_cli.training.trainer import Trainer

NEVER = 10**15  # steps: no evaluation, no checkpoint
Watch = Callable[[VarianceSample, LayerSums], bool]


class VarianceCallback(Callback):
    """Shows somebody what each step did to the variance, until they have seen enough.

    Args:
        optimizer: Measures it.
        watch: Is shown each step; says when enough is recorded.
    """

    def __init__(self, optimizer: SparseOptimizer, watch: Watch) -> None:
        self._optimizer, self._watch = optimizer, watch
        self.enough = False

    @override
    def on_step(self, step: int, loss: float, lr: float) -> None:
        sample = self._optimizer.variance_sample()
        assert sample is not None, "a dense run records every step"
        self.enough = self._watch(sample, self._optimizer.layer_changes())


def dense_twin(config: TrainConfig) -> TrainConfig:
    """The configuration with the recipe `dense`."""
    kept = OPTIMIZER_OPTIONS & config.sparsity.options.keys()
    options = {key: config.sparsity.options[key] for key in sorted(kept)}
    dense = config.sparsity.model_copy(update={"recipe": "dense", "options": options})
    return config.model_copy(update={"sparsity": dense})


def record_dense(
    config: TrainConfig,
    path: Path,
    begin: Callable[[VarianceHeader], Watch],
    *,
    last_step: int,
) -> None:
    """Train densely and record each step in the directory ``path``.

    Args:
        config: Whatever its recipe is, the run is dense.
        path: Exists and is empty; a run directory then.
        begin: Is told the first line of the recording; its result says when to stop.
        last_step: Where to stop at the latest.

    Raises:
        StepError: Something the user can mend.
    """
    config = dense_twin(config)
    setup = set_up(config, Processes(default_device()), record=True)
    header = variance_header(config, setup.model, setup.optimizer)
    save_text(path / "config.toml", to_toml(config))
    rarely = {"eval_every": NEVER, "checkpoint_every": NEVER}
    quiet = config.model_copy(update={"train": config.train.model_copy(update=rarely)})
    callback = VarianceCallback(setup.optimizer, begin(header))
    with (
        Records(path, header) as records,
        progress_callbacks(setup.optimizer, last_step) as progress,
    ):
        trainer = Trainer(
            quiet, setup, records, lambda: None, [callback, *progress], last_step
        )
        trainer.run(lambda: callback.enough)
