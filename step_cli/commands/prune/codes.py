"""Quantized weights: which of them can be pruned by the magnitude of their numbers."""

import logging
from collections.abc import Sequence

from step_cli.config.commands import PruneConfig
from step_cli.errors import UsageError, few
from step_cli.formats.checkpoint import Checkpoint, NamedTensor
from step_cli.nm.mask import INTEGERS
from step_cli.nm.selection import Chosen, Layer
from step_cli.nm.weight_rule import SkipReason

log = logging.getLogger(__name__)

# Why tensors of an ONNX file are left alone that may be weights.
_LEFT: dict[SkipReason, str] = {
    "dtype": "their type of number, such as 4 bits, cannot be changed in place",
    "kind": "it is not known which of their codes mean zero",
    "untraced": "they reach a product by a way that is not followed, such as a "
    "quantizer that computes its scale while the model runs",
}


def refuse_samples(layers: Sequence[Layer[NamedTensor]], option: str | None) -> None:
    """Refuse to fill a PyTorch model with codes.

    Args:
        layers: What is to be pruned.
        option: The option that runs the model on samples, or None.

    Raises:
        UsageError: There is one, and a layer is quantized.
    """
    for layer in layers if option else ():
        tensor = layer.tensor
        if tensor.quantized is not None or tensor.dtype in INTEGERS:
            raise UsageError(
                f"{option} does not apply to quantized weights ({tensor.dtype}); prune "
                "the model before it is quantized, or use --method magnitude alone",
                tensor=tensor.name,
            )


def is_uncertain(
    layer: Layer[NamedTensor], config: PruneConfig, *, named: bool
) -> bool:
    """Whether it is not certain which codes stand for the smaller numbers; warns if so.

    Args:
        layer: The tensor, and the axis of its groups.
        config: The options.
        named: Whether the user, or the plan, asks for just this tensor.
    """
    tensor = layer.tensor
    why = None if named else _doubt(layer, config)
    if why is not None:
        log.warning(
            "%s is left alone, as %s: --include %r prunes it",
            tensor.name,
            why,
            tensor.name,
        )
    return why is not None


def tell_left(checkpoint: Checkpoint, chosen: Chosen[NamedTensor]) -> None:
    """Warn of weights that an ONNX graph hides, once for each reason."""
    if checkpoint.format != "onnx":
        return
    unchecked = {id(tensor) for tensor in chosen.unchecked}
    for reason, why in _LEFT.items():
        names = [
            tensor.name
            for tensor, own in chosen.skipped
            if own == reason and id(tensor) in unchecked
        ]
        if names:
            log.warning("left alone, as %s: %s", why, few(names))


def _doubt(layer: Layer[NamedTensor], config: PruneConfig) -> str | None:
    """Why it is not certain, in words; None if it is."""
    found = layer.tensor.quantized
    if found is None:
        return None
    if layer.tensor.dtype.startswith("uint") and not found.zero_given:
        return (
            "its codes are unsigned and no zero point is given, so that no weight is "
            "negative"
        )
    if found.scales is not None:
        return None
    if layer.spec.axis in found.scale_axes:
        return "its scales differ along the inputs and are not known from the file"
    if config.transposable or config.density is not None:
        option = "--transposable" if config.transposable else "--density"
        return f"{option} compares numbers whose scales are not known from the file"
    return None
