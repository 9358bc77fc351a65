"""What `prune` does with samples: all layers first, in the order of the model."""

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from step_cli.commands.prune.groups import FinishedGroups
from step_cli.commands.prune.methods import CALIBRATED, Fit, Method, one_by_one
from step_cli.commands.prune.stored_model import StoredModel
from step_cli.commands.prune.tensors import (
    LayerToPrune,
    only_modules_that_stay_dense,
    place_of,
)
from step_cli.commands.prune.unfinished import identity, unfinished
from step_cli.config.commands import PruneConfig
from step_cli.errors import (
    InputError,
    NonFiniteError,
    NothingSelectedError,
    naming,
)
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.files.finished import FinishedParts
from step_cli.formats.files.patched_copy import Change
from step_cli.formats.huggingface.model import is_hugging_face
from step_cli.formats.pytorch.arrays import to_array
from step_cli.models.runnable import open_model
from step_cli.models.source import model_source
from step_cli.nm.groups import Mask
from step_cli.nm.prune import OneShot, Pruned
from step_cli.nm.weight_rule import SkipReason
from step_cli.oneshot.batch_norm import STATISTICS, batch_norms, recalibrate
from step_cli.oneshot.block_by_block import Batch, Calibration, prune_in_order
from step_cli.oneshot.inputs import TargetLayer
from step_cli.oneshot.layer_matrix import LayerMatrix
from step_cli.oneshot.output_errors import Errors
from step_cli.oneshot.placement import device_named
from step_cli.oneshot.refit import FittedBlock, Refit
from step_cli.oneshot.samples import divided, evened, read_batches
from step_cli.oneshot.sparsegpt import InputHessian, sparsegpt_weight
from step_cli.oneshot.transposable import transposable_keep
from step_cli.oneshot.wanda import InputNorms, wanda_keep
from step_cli.optim.module_kinds import stays_dense
from step_cli.reports import RefittedBlock

Array = npt.NDArray[Any]

STATISTICS_OF: dict[str, Callable[[], Any]] = {
    "wanda": InputNorms,
    "sparsegpt": InputHessian,
}
NO_LAYER = "it is no weight of a linear layer or a convolution of the model"
BATCHES = 32  # about so many are made of the samples, for a refit
NOT_RUN = "the model does not run it as a module of its own"


def calibrated(
    config: PruneConfig,
    checkpoint: Checkpoint,
    layers: list[LayerToPrune],
    folder: Path | None,
    stack: ExitStack,
) -> "Calibrated":
    """Run the samples through the model and prune every layer by what it sees.

    Args:
        config: The options.
        checkpoint: What is pruned.
        layers: What of it.
        folder: Where something large may be put aside; None: where temporary files go.
        stack: Closed once OUT is written, or will not be.

    Raises:
        UsageError: It is not known which model it is.
        InputError: Model, weights or samples do not fit each other, or what is to be
            resumed is of others.
        NonFiniteError: A weight or an activation is NaN or infinite.
        MissingError: The device is not there.
    """
    assert config.calibration is not None
    device = device_named(config.device)
    source = model_source(config.model, checkpoint)
    runnable = open_model(source, checkpoint)
    directory = Path(source.spec) if is_hugging_face(Path(source.spec)) else None
    batches = read_batches(
        config.calibration,
        runnable,
        most=config.calibration_samples,
        tokenizer=directory,
    )
    parts = None
    if not config.dry_run:
        plan = {layer.tensor.name: layer.spec for layer in layers}
        begun = identity(config, checkpoint, source, plan, batches)
        parts = stack.enter_context(unfinished(config, begun))
    done = Calibrated(config, StoredModel(runnable, checkpoint, folder))
    stack.callback(done.close)
    done.run(layers, batches, device, parts)
    return done


@dataclass
class Calibrated:
    """Layers that are pruned already, their new weights put aside.

    Attributes:
        config: The options.
        stored: The model, and what is put aside.
        done: What was done to each tensor, by name.
        left: Why weights of other modules are left out, by the name of the tensor.
        fit: What was fitted to the samples.
        not_fitted: Why a pruned tensor cannot be fitted, by its name.
    """

    config: PruneConfig
    stored: StoredModel
    done: dict[str, Pruned] = field(default_factory=dict)
    left: dict[str, SkipReason] = field(default_factory=dict)
    fit: Fit | None = None
    not_fitted: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        calibrated = self.config.method in CALIBRATED
        self._plain: Method | None = None if calibrated else one_by_one(self.config)

    def run(
        self,
        layers: list[LayerToPrune],
        batches: Sequence[Batch],
        device: torch.device,
        kept: FinishedParts | None,
    ) -> None:
        """Prune all layers, fit what they keep, and measure batch norms anew.

        Args:
            layers: What is to be pruned.
            batches: The samples.
            device: Where the model computes.
            kept: Where the results of each block are kept; None: nowhere.

        Raises:
            StepError: As `calibrated`.
        """
        config, model = self.config, self.stored.runnable.model
        folder = self.stored.folder
        norms = self._batch_norms() if config.recalibrate_bn else []
        refit = None
        parts: Sequence[Batch] = batches
        if config.refit != "none":
            parts = divided(batches, BATCHES)
            if len(parts) < 2:
                raise InputError(
                    "holds a single sample; --refit holds one of several out",
                    file=config.calibration,
                )
            refit = Refit(config.refit, model, self.stored, config.seed, folder)
        make = STATISTICS_OF.get(config.method)
        around = {} if refit is None else {"around": refit}
        unseen = None if self._plain is None else self._not_run
        finished = None
        if kept is not None:
            facts = partial(self._facts, refit)
            finished = FinishedGroups(
                kept, self.stored, facts, partial(self._take_up, refit)
            )
        work = Calibration(
            model,
            parts,
            make,
            self.prune,
            folder,
            unseen=unseen,
            device=device,
            finished=finished,
            **around,
        )
        prune_in_order(work, self.watch(layers, config.include))
        measured = recalibrate(model, evened(batches)) if norms else []
        for norm in measured:
            for name in STATISTICS:
                self.stored.store_buffer(norm, name)
        names = [self.stored.name_of(norm) for norm in measured]
        self.fit = Fit(
            self._layer_fields(refit),
            [_block_row(block) for block in refit.blocks] if refit else [],
            names if config.recalibrate_bn else None,
        )

    def watch(
        self, layers: list[LayerToPrune], named: Collection[str] = ()
    ) -> list[TargetLayer]:
        """The module of each layer; layers of other modules are pruned now, or left.

        Args:
            layers: What is to be pruned.
            named: Tensors that the user has asked for by name.

        Raises:
            InputError: A layer is no weight of a module that can be observed, and the
                method has to observe it.
            NothingSelectedError: All are weights of modules that stay dense.
        """
        watched, runnable = [], self.stored.runnable
        for layer in layers:
            name = layer.tensor.name
            if layer.tensor.tied_to is not None:
                continue
            place = runnable.names.get(name, "")
            module_name, _, parameter = place.rpartition(".")
            module = runnable.model.get_submodule(module_name) if place else nn.Module()
            reason = stays_dense(module)
            if reason is not None and name not in named:
                self.left[name] = reason
                continue
            fits = parameter == "weight" and LayerMatrix.fits(module)
            if not fits and self._plain is None:
                raise InputError(
                    "is no weight of a linear layer or a convolution of the model; "
                    "--exclude it, or use --method magnitude",
                    tensor=name,
                )
            self.stored.layers[place or name] = layer
            if fits:
                watched.append(TargetLayer(place, module))
            else:
                self.not_fitted[name] = NO_LAYER
                self.stored.put_other_kind(layer, place, self._by_rule(layer))
        if not watched and not self.not_fitted:
            raise NothingSelectedError(only_modules_that_stay_dense(self.left))
        return watched

    def prune(self, watched: TargetLayer, seen: Any) -> None:
        """Prune one layer, and have its module compute with the result."""
        layer, view = self.stored.layers[watched.name], LayerMatrix(watched.module)
        with naming(tensor=layer.tensor.name):
            if self.config.method == "sparsegpt":
                new = self._updated(layer, self.stored.dense(watched), view, seen)
            elif self.config.method == "wanda":
                new = self._masked(layer, self.stored.dense(watched), view, seen)
            else:
                new = self._by_rule(layer)
        self.stored.put(watched, new)

    def _facts(
        self, refit: Refit | None, layers: Sequence[TargetLayer]
    ) -> dict[str, Any]:
        """What is known of pruned layers besides their weights, as JSON has it."""
        names = [self.stored.layers[layer.name].tensor.name for layer in layers]
        return {
            "done": {name: asdict(self.done[name]) for name in names},
            "refit": {} if refit is None else refit.facts(layers),
        }

    def _take_up(self, refit: Refit | None, facts: dict[str, Any]) -> None:
        self.done |= {name: Pruned(**counts) for name, counts in facts["done"].items()}
        if refit is not None:
            refit.take_up(facts["refit"])

    def _not_run(self, watched: TargetLayer) -> None:
        layer = self.stored.layers[watched.name]
        self.not_fitted[layer.tensor.name] = NOT_RUN
        self.prune(watched, None)

    def blocks(self, layer: LayerToPrune) -> Iterator[Array]:
        """See `Method`."""
        new = self.stored.weights[layer.tensor.name]
        order = place_of(layer.tensor).order
        yield np.ascontiguousarray(new if order is None else new.transpose(order))

    @property
    def changes(self) -> list[Change]:
        """See `Method`."""
        return self.stored.changes

    def close(self) -> None:
        """See `Method`."""
        self.stored.close()

    def _batch_norms(self) -> list[nn.Module]:
        """Those whose statistics can be stored.

        Raises:
            NothingSelectedError: There are none.
        """
        norms = batch_norms(self.stored.runnable.model)
        for norm in norms:
            if not self.stored.stores(norm, STATISTICS):
                raise InputError(
                    "--recalibrate-bn: its running statistics are not stored in the "
                    "checkpoint, or shared with other tensors",
                    tensor=self.stored.name_of(norm),
                )
        if not norms:
            raise NothingSelectedError(
                "--recalibrate-bn: the model has no batch norm with running "
                "statistics; leave the option out"
            )
        return norms

    def _layer_fields(self, refit: Refit | None) -> dict[str, dict[str, Any]]:
        if refit is None:
            return {}
        found: dict[str, dict[str, Any]] = {
            name: {"not_refitted": reason} for name, reason in self.not_fitted.items()
        }
        for place, layer in self.stored.layers.items():
            errors = refit.errors.get(place)
            if errors is not None:
                found[layer.tensor.name] = _error_fields(errors)
            elif place in refit.reasons:
                found[layer.tensor.name] = {"not_refitted": refit.reasons[place]}
        return found

    def _by_rule(self, layer: LayerToPrune) -> Array:
        """Pruned as without samples; the axes in their order."""
        assert self._plain is not None
        tensor, order = layer.tensor, place_of(layer.tensor).order
        blocks = [block.copy().reshape(-1) for block in self._plain.blocks(layer)]
        self.done[tensor.name] = self._plain.done[tensor.name]
        order = order or tuple(range(len(tensor.shape)))
        new = np.concatenate(blocks).view(tensor.data().array.dtype)
        new = new.reshape([tensor.shape[axis] for axis in order])
        return np.ascontiguousarray(new.transpose(np.argsort(order)))

    def _masked(
        self, layer: LayerToPrune, stored: Tensor, view: LayerMatrix, seen: InputNorms
    ) -> Array:
        weights = layer.tensor.data()

        def choose(scores: Tensor) -> Mask:
            return transposable_keep(weights, layer.spec, layer.outputs, scores.numpy())

        keep = wanda_keep(
            stored, view, seen, layer.spec, choose if self.config.transposable else None
        )
        work = OneShot(weights, layer.spec, name=layer.tensor.name, keep=keep)
        new, filled = np.empty(weights.array.size, weights.array.dtype), 0
        for block in work.blocks():
            new[filled : filled + block.size] = block.view(new.dtype)
            filled += block.size
        self.done[layer.tensor.name] = work.done
        return new.reshape(weights.array.shape)

    def _updated(
        self,
        layer: LayerToPrune,
        stored: Tensor,
        view: LayerMatrix,
        seen: InputHessian,
    ) -> Array:
        new = sparsegpt_weight(stored, view, seen, layer.spec)
        if not bool(torch.isfinite(new).all()):
            raise NonFiniteError(f"an updated weight overflows {layer.tensor.dtype}")
        weights, keep = layer.tensor.data(), (new != 0).numpy()
        work = OneShot(weights, layer.spec, name=layer.tensor.name, keep=keep)
        for _ in work.blocks():
            pass
        self.done[layer.tensor.name] = replace(work.done, nonzeros=int(keep.sum()))
        return to_array(new)


def _error_fields(errors: Errors) -> dict[str, Any]:
    return {
        "error_before": errors.before,
        "error_after": errors.after,
        "held_out_before": errors.held_out_before,
        "held_out_after": errors.held_out_after,
    }


def _block_row(block: FittedBlock) -> RefittedBlock:
    return RefittedBlock(
        name=block.name, refitted=block.refitted, **_error_fields(block.errors)
    )
