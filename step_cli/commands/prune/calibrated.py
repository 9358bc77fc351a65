"""What `prune` does with samples: all layers first, in the order of the model."""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from step_cli.commands.prune.fit_report import block_row, layer_fields
from step_cli.commands.prune.groups import FinishedGroups
from step_cli.commands.prune.methods import CALIBRATED, Fit, Method, one_by_one
from step_cli.commands.prune.new_weights import by_rule, by_sparsegpt, by_wanda
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
    NothingSelectedError,
    exclude_it,
    naming,
)
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.files.patched_copy import Change
from step_cli.formats.huggingface.model import is_hugging_face
from step_cli.models.runnable import open_model
from step_cli.models.source import model_source
from step_cli.nm.prune import Pruned
from step_cli.nm.weight_rule import SkipReason
from step_cli.oneshot.batch_norm import STATISTICS, batch_norms, recalibrate
from step_cli.oneshot.block_by_block import prune_in_order
from step_cli.oneshot.calibration import Calibration
from step_cli.oneshot.forward_pass import Batch
from step_cli.oneshot.inputs import TargetLayer
from step_cli.oneshot.layer_matrix import LayerMatrix
from step_cli.oneshot.placement import device_named
from step_cli.oneshot.refit import Refit
from step_cli.oneshot.samples import divided, evened, read_batches
from step_cli.oneshot.sparsegpt import InputHessian
from step_cli.oneshot.wanda import InputNorms
from step_cli.optim.module_kinds import stays_dense
from step_cli.render.status_line import working_on

log = logging.getLogger(__name__)

Array = npt.NDArray[Any]

STATISTICS_OF: dict[str, Callable[[], Any]] = {
    "wanda": InputNorms,
    "sparsegpt": InputHessian,
}
NO_LAYER = "it is no weight of a linear layer or a convolution of the model"
BATCHES = 32  # about so many are made of the samples, for a refit
NOT_RUN = "the model does not run it as a module of its own on any sample"


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
    with working_on("building the model"):
        runnable = open_model(source, checkpoint)
    directory = Path(source.spec) if is_hugging_face(Path(source.spec)) else None
    with working_on(f"reading {config.calibration}"):
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
    done = Calibrated(config, StoredModel(runnable, checkpoint, folder, parts))
    stack.callback(done.close)
    watched = done.watch(layers, config.include)
    done.stored.use_without_place(partial(open_model, source))
    done.run(watched, batches, device)
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
        layers: list[TargetLayer],
        batches: Sequence[Batch],
        device: torch.device,
    ) -> None:
        """Prune all layers, fit what they keep, and measure batch norms anew.

        Args:
            layers: What is to be pruned, as `watch` gives it.
            batches: The samples.
            device: Where the model computes.

        Raises:
            StepError: As `calibrated`.
        """
        config, model = self.config, self.stored.runnable.model
        kept = self.stored.parts
        norms = self._batch_norms() if config.recalibrate_bn else []
        refit = None
        parts: Sequence[Batch] = batches
        if config.refit != "none":
            parts = self._for_a_refit(batches)
            folder = self.stored.folder
            refit = Refit(config.refit, model, self.stored, config.seed, folder)
        work = Calibration(
            model,
            parts,
            STATISTICS_OF.get(config.method),
            self.prune,
            self.stored.folder,
            unseen=None if self._plain is None else self._not_run,
            device=device,
            finished=None
            if kept is None
            else FinishedGroups(kept, self.stored, self.done, refit),
            **({} if refit is None else {"around": refit}),
        )
        prune_in_order(work, layers)
        if config.refit == "block" and refit is not None and not refit.blocks:
            log.warning(
                "--refit block: the model has no list of blocks that simply feed each "
                "other, so its layers were fitted as by --refit layer"
            )
        with working_on("measuring batch norms"), naming(file=config.calibration):
            measured = recalibrate(model, evened(batches)) if norms else []
        for norm in measured:
            for name in STATISTICS:
                self.stored.store_buffer(norm, name)
        names = [self.stored.name_of(norm) for norm in measured]
        rows = [block_row(block) for block in refit.blocks] if refit else []
        fields = (
            layer_fields(refit, self.stored.layers, self.not_fitted) if refit else {}
        )
        self.fit = Fit(fields, rows, names if config.recalibrate_bn else None)

    def _for_a_refit(self, batches: Sequence[Batch]) -> Sequence[Batch]:
        """The samples in smaller batches, some of which are held out.

        Raises:
            InputError: There is one sample only.
        """
        parts = divided(batches, BATCHES)
        if len(parts) < 2:
            raise InputError(
                "holds a single sample; --refit holds one of several out",
                file=self.config.calibration,
            )
        return parts

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
        watched, unfit, runnable = [], list[str](), self.stored.runnable
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
                unfit.append(name)
                continue
            self.stored.layers[place or name] = layer
            if fits or self._plain is None:
                watched.append(TargetLayer(place, module))
            else:
                self.not_fitted[name] = NO_LAYER
                new, self.done[name] = by_rule(self._plain, layer)
                self.stored.put_other_kind(layer, place, new)
        if unfit:
            raise InputError(
                "is no weight of a linear layer or a convolution of the model; "
                f"{exclude_it(unfit)}, or use --method magnitude",
                tensor=unfit[0],
            )
        if not watched and not self.not_fitted:
            raise NothingSelectedError(only_modules_that_stay_dense(self.left))
        return watched

    def prune(self, watched: TargetLayer, seen: Any) -> None:
        """Prune one layer, and have its module compute with the result."""
        layer, view = self.stored.layers[watched.name], LayerMatrix(watched.module)
        with naming(tensor=layer.tensor.name):
            if self.config.method == "wanda":
                both = self.config.transposable
                work = by_wanda(layer, view, seen, transposable=both)
                self.stored.put(watched, work.blocks())
                self.done[layer.tensor.name] = work.done
                return
            if self._plain is None:
                new, done = by_sparsegpt(layer, view, seen)
            else:
                new, done = by_rule(self._plain, layer)
        self.done[layer.tensor.name] = done
        self.stored.put(watched, [new])

    def _not_run(self, watched: TargetLayer) -> None:
        layer = self.stored.layers[watched.name]
        self.not_fitted[layer.tensor.name] = NOT_RUN
        self.stored.other_kinds.keep(watched.module, "weight")
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
                    "checkpoint, or shared with other tensors; leave the option out",
                    tensor=self.stored.name_of(norm),
                )
        if not norms:
            raise NothingSelectedError(
                "--recalibrate-bn: the model has no batch norm with running "
                "statistics; leave the option out"
            )
        return norms
