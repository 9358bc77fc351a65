"""How `prune` decides: by scores of one tensor at a time, or by what layers see."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy.typing as npt

from step_cli.commands.prune.tensors import LayerToPrune, place_of
from step_cli.config.commands import PruneConfig
from step_cli.errors import UsageError
from step_cli.formats.files.patched_copy import Change
from step_cli.nm.groups import Mask
from step_cli.nm.prune import OneShot, Pruned
from step_cli.nm.tensor_data import TensorData
from step_cli.nm.weight_rule import SkipReason
from step_cli.reports import RefittedBlock

Array = npt.NDArray[Any]

CALIBRATED = ("wanda", "sparsegpt")


@dataclass(frozen=True)
class Fit:
    """What was fitted to samples.

    Attributes:
        layers: Fields of `PrunedLayer` that a fit fills, by the name of the tensor.
        blocks: Each block that was fitted as a whole.
        batch_norms: Whose statistics were measured anew; None: it was not asked for.
    """

    layers: dict[str, dict[str, Any]]
    blocks: list[RefittedBlock]
    batch_norms: list[str] | None


class Method(Protocol):
    """Prunes layers one by one.

    Attributes:
        done: What was done to each layer so far, by the name of its tensor.
        left: Why it leaves tensors out that the model uses in another way, by name.
        fit: What was fitted to samples; None: nothing.
    """

    done: dict[str, Pruned]
    left: dict[str, SkipReason]
    fit: Fit | None

    @property
    def changes(self) -> Sequence[Change]:
        """Of tensors that are not pruned: norms, biases and statistics."""
        ...

    def blocks(self, layer: LayerToPrune) -> Iterator[Array]:
        """The new data in the order of the file; ``done`` has the counts after it.

        A block is overwritten once the next one is taken.
        """
        ...


def check_method(config: PruneConfig) -> None:
    """Refuse options that do not go together, before anything is read.

    Raises:
        UsageError: They do not.
    """
    calibrated = needs_samples(config)
    if calibrated and config.calibration is None:
        raise UsageError(f"{calibrated} needs --calibration FILE: text, .jsonl or .npz")
    if config.calibration is not None and not calibrated:
        raise UsageError(
            f"--calibration does not apply to --method {config.method} without --refit "
            "or --recalibrate-bn"
        )
    if config.model is not None and not calibrated and not config.permute:
        raise UsageError(
            f"--model does not apply to --method {config.method} without --permute, "
            "--refit or --recalibrate-bn"
        )
    if not calibrated and (config.device != "cpu" or config.resume):
        option = "--resume" if config.resume else f"--device {config.device}"
        raise UsageError(
            f"{option} applies where samples are used: --method wanda or sparsegpt, "
            "--refit or --recalibrate-bn"
        )
    if config.resume and config.dry_run:
        raise UsageError("--resume does not go with --dry-run, which writes nothing")
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


def needs_samples(config: PruneConfig) -> str | None:
    """The option that runs the model on calibration samples, or None."""
    if config.method in CALIBRATED:
        return f"--method {config.method}"
    if config.refit != "none":
        return f"--refit {config.refit}"
    return "--recalibrate-bn" if config.recalibrate_bn else None


def one_by_one(config: PruneConfig) -> Method:
    """The method that needs no samples."""
    if config.transposable:
        return Transposable()
    return OneByOne(config.seed if config.method == "random" else None)


@dataclass
class OneByOne:
    """By magnitude, or at random with a ``seed``."""

    seed: int | None = None
    done: dict[str, Pruned] = field(default_factory=dict)
    left: dict[str, SkipReason] = field(default_factory=dict)
    changes: Sequence[Change] = ()
    fit: Fit | None = None

    def blocks(self, layer: LayerToPrune) -> Iterator[Array]:
        """See `Method`."""
        weights = layer.tensor.data()
        yield from pruned_blocks(layer, weights, self.done, seed=self.seed)


@dataclass
class Transposable:
    """By magnitude, so that the pattern holds along the outputs as well."""

    done: dict[str, Pruned] = field(default_factory=dict)
    left: dict[str, SkipReason] = field(default_factory=dict)
    changes: Sequence[Change] = ()
    fit: Fit | None = None

    def blocks(self, layer: LayerToPrune) -> Iterator[Array]:
        """See `Method`."""
        from step_cli.oneshot.transposable import transposable_keep

        weights = layer.tensor.data()
        keep = transposable_keep(weights, layer.spec, layer.outputs)
        yield from pruned_blocks(layer, weights, self.done, keep=keep)


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
