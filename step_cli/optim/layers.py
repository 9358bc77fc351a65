"""Which parameters of a model are to become N:M, and along which axis.

The rule by name, shape and dtype is that of files (`nm/selection.py`); the modules
add what names cannot tell: embeddings and norms by class, transposed convolutions, and
Hugging Face's Conv1D, which stores ``[in, out]``.
"""

import logging
from collections.abc import Iterator, Mapping

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from step_cli.errors import UsageError
from step_cli.nm.pattern import NMSpec, Plan
from step_cli.nm.selection import Chosen, Selection
from step_cli.nm.weight_rule import Description, SkipReason
from step_cli.optim.backward import is_conv1d

logger = logging.getLogger(__name__)

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.instancenorm._InstanceNorm,
)


def choose_layers(model: nn.Module, selection: Selection) -> Chosen[Description]:
    """Choose the weights of ``model`` that are to become N:M.

    Raises:
        StepError: As :meth:`Selection.choose` does.
    """
    return selection.choose(list(_describe(model)))


def plan_for(model: nn.Module, selection: Selection) -> Plan:
    """The plan of ``model``: each chosen weight with its pattern and group axis.

    What was chosen but does not divide into groups is said in a warning.
    """
    chosen = choose_layers(model, selection)
    warn_of(chosen)
    return {layer.tensor.name: layer.spec for layer in chosen.layers}


def warn_of(chosen: Chosen[Description]) -> None:
    """Say what was chosen and stays dense all the same, so that nobody is surprised."""
    for text in chosen.warnings:
        logger.warning("%s", text)
    for tensor in chosen.unchecked:
        shape = list(tensor.shape)
        logger.warning(
            "%s stays dense: shape %s has no whole groups", tensor.name, shape
        )


def param_groups(model: nn.Module, plan: Plan) -> list[dict[str, object]]:
    """Param groups of all trainable parameters, named.

    One group for each pattern and axis, carrying both, and one for the dense rest.
    """
    groups: dict[NMSpec | None, list[tuple[str, Tensor]]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(plan.get(name), []).append((name, parameter))
    return [_group(layer, members) for layer, members in groups.items()]


def density(weights: Mapping[str, Tensor], plan: Plan) -> float:
    """Share of non-zeros among the planned weights."""
    kept = sum(int(weights[name].count_nonzero()) for name in plan)
    total = sum(weights[name].numel() for name in plan)
    return kept / total if total else 1.0


def _group(
    layer: NMSpec | None, members: list[tuple[str, Tensor]]
) -> dict[str, object]:
    if layer is None:
        return {"params": members}
    return {"params": members, "pattern": str(layer.pattern), "axis": layer.axis}


def _describe(model: nn.Module) -> Iterator[Description]:
    modules = dict(model.named_modules())
    tables = {
        id(module.weight)
        for module in modules.values()
        if isinstance(module, (nn.Embedding, nn.EmbeddingBag))
    }
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise UsageError(f"{name} has no shape yet: run the model on a batch first")
        module = modules[name.rpartition(".")[0]]
        # A table may be tied to a Linear that comes first.
        transposed = isinstance(module, TRANSPOSED)
        skip: SkipReason | None = None
        if transposed or isinstance(module, NORMS) or id(parameter) in tables:
            skip = "consumer"
        yield Description(
            name,
            str(parameter.dtype).removeprefix("torch."),
            tuple(parameter.shape),
            axis=0 if is_conv1d(module) else None,
            skip=skip,
        )
