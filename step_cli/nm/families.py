"""What the kind of a model says of the group axis of its tensors."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from step_cli.nm.family_table import FAMILIES, Family


class Axes(NamedTuple):
    """Two axes of a tensor: what a product sums over, and its outputs."""

    inputs: int
    outputs: int


class ModelConfig(NamedTuple):
    """What ``config.json`` says of a model, nested parts too.

    Attributes:
        model_types: Every ``model_type``.
        hidden_sizes: Every width that runs from layer to layer.
    """

    model_types: tuple[str, ...] = ()
    hidden_sizes: frozenset[int] = frozenset()


NOTHING_KNOWN = ModelConfig()


def axis_by_config(name: str, shape: Sequence[int], config: ModelConfig) -> int | None:
    """The group axis that the model's kind gives a tensor, or None: it says nothing.

    Args:
        name: The tensor, without wrapper components such as ``_orig_mod``.
        shape: Its shape.
        config: What ``config.json`` says.
    """
    axes = _axes_by_config(name, shape, config)
    return axes and axes.inputs


def output_axis_by_config(
    name: str, shape: Sequence[int], config: ModelConfig
) -> int | None:
    """The axis of the outputs, where `axis_by_config` knows the group axis."""
    axes = _axes_by_config(name, shape, config)
    return axes and axes.outputs


def family_rows() -> list[tuple[str, str, str, int, str]]:
    """The table: model types, tensors, what is stored, group axis, module."""
    return [
        (
            ", ".join(family.model_types),
            ", ".join(family.tensors),
            f"[{', '.join(family.stored)}]",
            family.axis,
            family.module,
        )
        for family in FAMILIES
    ]


@lru_cache(maxsize=16)
def _families_of(model_types: tuple[str, ...]) -> list[tuple[str, Family]]:
    """The families that concern a model, each by how a name ends."""
    return [
        (f".{end}", family)
        for family in FAMILIES
        if not set(family.model_types).isdisjoint(model_types)
        for end in family.tensors
    ]


def _axes_by_config(
    name: str, shape: Sequence[int], config: ModelConfig
) -> Axes | None:
    said = {
        _axes(family, shape, config.hidden_sizes)
        for end, family in _families_of(config.model_types)
        if f".{name}".endswith(end) and len(shape) == len(family.stored)
    }
    return said.pop() if len(said) == 1 else None  # two parts of a model may disagree


def _axes(
    family: Family, shape: Sequence[int], hidden_sizes: frozenset[int]
) -> Axes | None:
    axes = Axes(family.axis, family.output_axis)
    if family.hidden is None or not _is_turned(family, shape, hidden_sizes):
        return axes
    return Axes(axes.outputs, axes.inputs) if family.turned_too else None


def _is_turned(
    family: Family, shape: Sequence[int], hidden_sizes: frozenset[int]
) -> bool:
    """Whether the shape shows that ``in`` and ``out`` are in each other's place."""
    hidden, inner = shape[family.axis], shape[family.output_axis]
    if family.hidden == "out":
        hidden, inner = inner, hidden
    if (hidden in hidden_sizes) != (inner in hidden_sizes):
        return inner in hidden_sizes
    # GPT-2 widens by 3 (or 2, of a cross-attention) and by 4, unless told otherwise.
    return len(shape) == 2 and hidden in (2 * inner, 3 * inner, 4 * inner)
