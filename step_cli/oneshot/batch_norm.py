"""Measure running statistics of batch norms anew: pruning shifts what they see."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Self

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import update_bn
from typing_extensions import override

from step_cli.errors import InputError
from step_cli.oneshot.forward_pass import run_model

STATISTICS = ("running_mean", "running_var")
COUNT = "num_batches_tracked"


def batch_norms(model: nn.Module) -> list[nn.Module]:
    """The batch norms that have running statistics, in the order of the model."""
    return [
        module
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]


def recalibrate(
    model: nn.Module, batches: Sequence[Mapping[str, Tensor]]
) -> list[nn.Module]:
    """Set running statistics to the mean over ``batches`` of what each batch has.

    Only batch norms are in training mode meanwhile: nothing is dropped at random. How
    many batches a norm says to have seen stays as it was.

    Args:
        model: In evaluation mode.
        batches: Arguments of its ``forward``, of about equal size.

    Returns:
        The batch norms that the model runs; others keep what they had.

    Raises:
        InputError: The model does not take a batch, or a batch norm gets a single
            number for each channel from it.
    """
    norms = batch_norms(model)
    before = {norm: {k: _copy(x) for k, x in norm._buffers.items()} for norm in norms}
    with _single_numbers_refused(model):
        update_bn(batches, _ByName(model))
    measured = [norm for norm in norms if bool(norm._buffers[COUNT])]
    for norm, buffers in before.items():
        names = (COUNT,) if norm in measured else tuple(buffers)
        norm._buffers.update({name: buffers[name] for name in names})
    return measured


@contextmanager
def _single_numbers_refused(model: nn.Module) -> Iterator[None]:
    """Refuse a batch that gives a batch norm one number for each channel."""

    def refuse(name: str, norm: nn.Module, args: tuple[Tensor, ...]) -> None:
        if args and args[0].dim() > 1 and args[0].numel() == args[0].shape[1]:
            raise InputError(
                f"--recalibrate-bn: batch norm {name!r} gets a single number for each "
                "channel from one of the batches, which has no variance; give at least "
                "two samples of each shape, one after the other"
            )

    norms = set(batch_norms(model))
    hooks = [
        module.register_forward_pre_hook(partial(refuse, name))
        for name, module in model.named_modules()
        if module in norms
    ]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _copy(buffer: Tensor | None) -> Tensor | None:
    return None if buffer is None else buffer.clone()


class _ByName(nn.Module):
    """Takes a batch as one argument, as `update_bn` gives it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.training = model, False

    @override
    def forward(self, batch: Mapping[str, Tensor]) -> None:
        run_model(self.model, batch)

    @override
    def train(self, mode: bool = True) -> Self:
        for norm in batch_norms(self.model):
            norm.training = mode
        return self
