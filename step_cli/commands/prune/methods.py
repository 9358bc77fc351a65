"""How `prune` decides: by scores of one tensor at a time, or by what layers see."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy.typing as npt

from step_cli.commands.prune.tensors import LayerToPrune, place_of
from step_cli.config.commands import PruneConfig
from step_cli.errors import UsageError
from step_cli.formats.checkpoint import Checkpoint
from step_cli.nm.groups import Mask
from step_cli.nm.prune import OneShot, Pruned
from step_cli.nm.tensor_data import TensorData
from step_cli.nm.weight_rule import SkipReason

Array = npt.NDArray[Any]

CALIBRATED = ("wanda", "sparsegpt")


class Method(Protocol):
    """Prunes layers one by one.

    Attributes:
        done: What was done to each layer so far, by the name of its tensor.
        left: Why it leaves tensors out that the model uses in another way, by name.
    """

    done: dict[str, Pruned]
    left: dict[str, SkipReason]

    def blocks(self, layer: LayerToPrune) -> Iterator[Array]:
        """The new data in the order of the file; ``done`` has the counts after it.

        A block is overwritten once the next one is taken.
        """
        ...

    def close(self) -> None:
        """Give back what was put aside."""
        ...


def check_method(config: PruneConfig) -> None:
    """Refuse options that do not go together, before anything is read.

    Raises:
        UsageError: They do not.
    """
    calibrated = config.method in CALIBRATED
    if calibrated and config.calibration is None:
        raise UsageError(
            f"--method {config.method} needs --calibration FILE: text, .jsonl or .npz"
        )
    if config.calibration is not None and not calibrated:
        raise UsageError(f"--calibration does not apply to --method {config.method}")
    if config.model is not None and not calibrated and not config.permute:
        raise UsageError(
            f"--model does not apply to --method {config.method} without --permute"
        )
    if config.input and not config.permute:
        raise UsageError("--input applies to --permute only")
    if config.permute and config.transposable:
        raise UsageError(
            "--permute does not go with --transposable, whose groups run both ways"
        )
    if config.transposable and config.method in ("sparsegpt", "random"):
        raise UsageError(
            f"--transposable does not go with --method {config.method}; use magnitude "
            "or wanda"
        )


def method_of(
    config: PruneConfig,
    checkpoint: Checkpoint,
    layers: list[LayerToPrune],
    folder: Path | None,
) -> Method:
    """The method that the options name, ready to prune.

    Args:
        config: The options.
        checkpoint: What is pruned.
        layers: What of it.
        folder: Where something large may be put aside; None: where temporary files
            go.

    Raises:
        StepError: The model or the calibration samples are refused.
    """
    if config.method in CALIBRATED:
        from step_cli.commands.prune.calibrated import calibrated

        return calibrated(config, checkpoint, layers, folder)
    if config.transposable:
        return Transposable()
    return OneByOne(config.seed if config.method == "random" else None)


@dataclass
class OneByOne:
    """By magnitude, or at random with a ``seed``."""

    seed: int | None = None
    done: dict[str, Pruned] = field(default_factory=dict)
    left: dict[str, SkipReason] = field(default_factory=dict)

    def blocks(self, layer: LayerToPrune) -> Iterator[Array]:
        """See `Method`."""
        weights = layer.tensor.data()
        yield from pruned_blocks(layer, weights, self.done, seed=self.seed)

    def close(self) -> None:
        """See `Method`."""


@dataclass
class Transposable:
    """By magnitude, so that the pattern holds along the outputs as well."""

    done: dict[str, Pruned] = field(default_factory=dict)
    left: dict[str, SkipReason] = field(default_factory=dict)

    def blocks(self, layer: LayerToPrune) -> Iterator[Array]:
        """See `Method`."""
        from step_cli.oneshot.transposable import transposable_keep

        weights = layer.tensor.data()
        keep = transposable_keep(weights, layer.spec, layer.outputs)
        yield from pruned_blocks(layer, weights, self.done, keep=keep)

    def close(self) -> None:
        """See `Method`."""


def pruned_blocks(
    layer: LayerToPrune,
    weights: TensorData,
    done: dict[str, Pruned],
    *,
    keep: Mask | None = None,
    seed: int | None = None,
) -> Iterator[Array]:
    """Prune ``weights`` of a layer in the order of its file; counts go to ``done``."""
    spec, name = layer.spec, layer.tensor.name
    order = place_of(layer.tensor).order
    if order is not None:  # in the file, its axes stand in another order
        weights = weights.transposed(order)
        spec = replace(spec, axis=order.index(spec.axis))
        keep = None if keep is None else keep.transpose(order)
    one_shot = OneShot(weights, spec, name=name, seed=seed, keep=keep)
    yield from one_shot.blocks()
    done[name] = one_shot.done
