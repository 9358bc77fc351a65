"""Which parameters of a model are to become N:M, and along which axis.

Where the type of a module is known it decides, whatever the names: which weights are
those of products, embeddings, norms or transposed convolutions, and that Hugging Face's
Conv1D stores ``[in, out]``. The rest, such as the experts of a model of transformers,
is told by names, shapes and its configuration, as in files (`nm/selection.py`).
"""

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from step_cli.errors import UsageError
from step_cli.formats.huggingface.model_config import model_config_of
from step_cli.nm.families import ModelConfig
from step_cli.nm.pattern import NMSpec, Plan
from step_cli.nm.selection import Chosen, Selection
from step_cli.nm.weight_rule import Description, SkipReason, uncheckable
from step_cli.optim.backward import CONVOLUTIONS, is_conv1d

logger = logging.getLogger(__name__)

TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
TABLES = (nn.Embedding, nn.EmbeddingBag)
NORMS = (
    nn.modules.batchnorm._BatchNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.RMSNorm,
    nn.modules.instancenorm._InstanceNorm,
)
# Their `weight` is [out, in, ...].
PRODUCTS = (nn.Linear, *CONVOLUTIONS)
# Each `*weight*` of theirs is [out, in].
SEVERAL_PRODUCTS = (
    nn.MultiheadAttention,
    nn.modules.rnn.RNNBase,
    nn.modules.rnn.RNNCellBase,
)
# Why what a product may use stays dense all the same.
STAYS_DENSE: Mapping[SkipReason, str] = {
    "size": "shape {} has no whole groups",
    "dtype": "{} is no floating type",
    "reparametrized": "its module computes the weight from it",
    "flat": "it holds the parameters of several layers",
    "packed": "it holds several codes a number",
}


def choose_layers(model: nn.Module, selection: Selection) -> Chosen[Description]:
    """Choose the weights of ``model`` that are to become N:M.

    Raises:
        StepError: As :meth:`Selection.choose` does.
    """
    return selection.choose(list(_describe(model)), _config_of(model))


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
    reasons = {tensor.name: reason for tensor, reason in chosen.skipped}
    for tensor in chosen.unchecked:
        reason = reasons[tensor.name]
        found = tensor.dtype if reason == "dtype" else list(tensor.shape)
        why = STAYS_DENSE.get(reason, reason).format(found)
        logger.warning("%s stays dense: %s", tensor.name, why)
    for layer in chosen.layers:
        if layer.assumed:
            logger.warning(
                "%s: axis %d of %s is assumed to be that of the inputs",
                layer.tensor.name,
                layer.spec.axis,
                list(layer.tensor.shape),
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
        id(module.weight) for module in modules.values() if isinstance(module, TABLES)
    }
    for name, parameter in model.named_parameters():
        if is_lazy(parameter):
            raise UsageError(f"{name} has no shape yet: run the model on a batch first")
        owner, _, own = name.rpartition(".")
        dtype = str(parameter.dtype).removeprefix("torch.")
        unknown = Description(name, dtype, tuple(parameter.shape))
        # A table may be tied to a Linear that comes first.
        if id(parameter) in tables:
            yield replace(unknown, skip="embedding")
        else:
            yield _by_type(modules[owner], own, unknown)


def stays_dense(module: nn.Module) -> SkipReason | None:
    """Why the weight of a module stays dense, whatever its name; else None."""
    if isinstance(module, TRANSPOSED):
        return "consumer"  # its groups would run along the outputs
    if isinstance(module, TABLES):
        return "embedding"
    return "norm" if isinstance(module, NORMS) else None


def _by_type(module: nn.Module, own: str, unknown: Description) -> Description:
    """What the type of its module tells of a parameter; names tell the rest.

    Args:
        module: Whose parameter it is.
        own: Its name in the module.
        unknown: Its description so far.
    """
    reason = stays_dense(module)
    if reason is not None:
        return replace(unknown, skip=reason)
    if is_conv1d(module):
        axis = 0
    elif isinstance(module, PRODUCTS):
        axis = 1
    elif isinstance(module, SEVERAL_PRODUCTS) and "weight" in own:
        return replace(unknown, axis=1, is_weight=uncheckable(unknown) is None)
    else:
        return unknown
    if own != "weight":
        return unknown
    return replace(unknown, axis=axis, is_weight=uncheckable(unknown) is None)


def _config_of(model: nn.Module) -> ModelConfig:
    """What the configurations of transformers in a model tell of raw parameters."""
    configs: dict[int, Any] = {}
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if any(
            kind.__module__.startswith("transformers.") for kind in type(config).__mro__
        ) and hasattr(config, "to_dict"):
            configs[id(config)] = config
    return model_config_of([config.to_dict() for config in configs.values()])
