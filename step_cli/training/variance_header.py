"""What the first line of a run's ``variance.jsonl`` says."""

from torch import Tensor

from step_cli.autoswitch.variance_log import RecordedLayer, VarianceHeader
from step_cli.config.train import TrainConfig
from step_cli.optim.variance import variances
from step_cli.training.setup import Setup


def variance_header(config: TrainConfig, setup: Setup) -> VarianceHeader:
    """The settings, and the parameters in the order the optimizer measures them."""
    names: dict[Tensor, str] = {p: name for name, p in setup.model.named_parameters()}
    found = [p for p, _, _ in variances(setup.optimizer)]
    layers = tuple(RecordedLayer(names.get(p, "?"), p.numel()) for p in found)
    train = config.train
    return VarianceHeader(train.betas[1], train.eps, train.steps, layers)
