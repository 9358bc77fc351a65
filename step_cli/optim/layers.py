"""Which parameters of a model are to become N:M, and along which axis.

Where the type of a module is known it decides, whatever the names (`module_kinds.py`).
The rest, such as the experts of a model of transformers, is told by names, shapes and
its configuration, as in files (`nm/selection.py`). `stays_dense.py` says what is left.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from step_cli.errors import UsageError
from step_cli.formats.huggingface.model_config import model_config_of
from step_cli.nm.families import ModelConfig
from step_cli.nm.pattern import NMSpec, Plan
from step_cli.nm.selection import Chosen, Selection
from step_cli.nm.weight_rule import Description
from step_cli.optim.module_kinds import describe

logger = logging.getLogger(__name__)

# Components of names under which adapters keep what is added to a weight: LoRA, LoHa,
# LoKr, VeRA, OFT and their kin.
_ADAPTER = re.compile(
    r"(\w+_)?lora(_\w+)?|(hada|lokr|vera|oft|boft|ia3)_\w+", re.IGNORECASE
)


def choose_layers(model: nn.Module, selection: Selection) -> Chosen[Description]:
    """Choose the weights of ``model`` that are to become N:M.

    Raises:
        StepError: As :meth:`Selection.choose` does.
    """
    return selection.choose(list(describe(model)), _config_of(model))


def plan_of(chosen: Chosen[Description]) -> Plan:
    """The plan of what was chosen; what is uncertain about it is said."""
    for text in chosen.warnings:
        logger.warning("%s", text)
    for layer in chosen.layers:
        if layer.assumed:
            logger.warning(
                "%s: axis %d of %s is assumed to be that of the inputs",
                layer.tensor.name,
                layer.spec.axis,
                list(layer.tensor.shape),
            )
    return {layer.tensor.name: layer.spec for layer in chosen.layers}


def refuse_adapters(weights: Mapping[str, Tensor], plan: Plan) -> None:
    """Refuse to prune what is only added to a weight that stays dense.

    Args:
        weights: All parameters of the model.
        plan: What was chosen.

    Raises:
        UsageError: An adapter that trains was chosen.
    """
    for name in plan:
        if weights[name].requires_grad and is_adapter(name, weights):
            raise UsageError(
                f"{name} is an adapter, added to a weight that stays dense, so the "
                "model would stay dense too; merge the adapters first (in peft: "
                "model.merge_and_unload()) and train the merged weights"
            )


def is_adapter(name: str, weights: Mapping[str, Tensor]) -> bool:
    """Whether a parameter is a part of an adapter beside a weight, by the names.

    Args:
        name: Its name.
        weights: All parameters.
    """
    parts = name.split(".")
    if any(_ADAPTER.fullmatch(part) for part in parts):
        return True
    if "base_layer" in parts:
        return False
    beside = (
        ".".join([*parts[:end], "base_layer", "weight"]) for end in range(len(parts))
    )
    return any(base in weights and not weights[base].requires_grad for base in beside)


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
