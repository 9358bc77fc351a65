"""What the kind of a model says of its tensors: what they are, and their axes."""

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Literal, NamedTuple

from step_cli.nm.family_table import FAMILIES, Family
from step_cli.nm.misnamed_table import MISNAMED, Misnamed


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
ADDED = {"Embedding", "Positions"}  # no product multiplies by them
TRANSPOSED = {"ConvTranspose1d", "ConvTranspose2d"}  # each stores [in, out, window..]


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


def reason_by_config(
    name: str, shape: Sequence[int], config: ModelConfig
) -> Literal["embedding", "consumer"] | None:
    """Why a tensor is no weight to be judged, where the model's kind tells; else None.

    It is a table of embeddings, or the weight of a transposed convolution.

    Args:
        name: The tensor, without wrapper components such as ``_orig_mod``.
        shape: Its shape.
        config: What ``config.json`` says.
    """
    modules = {entry.module for entry in _misnamed(name, shape, config)}
    if modules and modules <= ADDED:
        return "embedding"
    return "consumer" if modules and modules <= TRANSPOSED else None


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


def misnamed_rows() -> list[tuple[str, str, str, str]]:
    """The other table: class of torch.nn, model types, names of modules, owner."""
    return [
        (
            entry.module,
            ", ".join(entry.model_types),
            ", ".join(f"`{name}`" for name in entry.names)
            + (" (even window)" if entry.even_window else ""),
            entry.owner,
        )
        for entry in MISNAMED
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
    said = {_axes_of(entry) for entry in _misnamed(name, shape, config)}
    said |= {
        _axes(family, shape, config.hidden_sizes)
        for end, family in _families_of(config.model_types)
        if f".{name}".endswith(end) and len(shape) == len(family.stored)
    }
    return said.pop() if len(said) == 1 else None  # two parts of a model may disagree


def _misnamed(name: str, shape: Sequence[int], config: ModelConfig) -> list[Misnamed]:
    """What the table has of a tensor."""
    return [
        entry
        for end, entry in _misnamed_of(config.model_types)
        if len(shape) == entry.rank
        and end.search(name)
        and not (entry.even_window and any(size % 2 for size in shape[2:]))
    ]


@lru_cache(maxsize=16)
def _misnamed_of(
    model_types: tuple[str, ...],
) -> list[tuple[re.Pattern[str], Misnamed]]:
    """The entries that concern a model, each by how a name ends."""
    return [
        (re.compile(rf"(?:^|\.){_pattern(end)}\.weight$"), entry)
        for entry in MISNAMED
        if not set(entry.model_types).isdisjoint(model_types)
        for end in entry.names
    ]


def _pattern(end: str) -> str:
    return r"\d+".join(re.escape(text) for text in end.split("*"))


def _axes_of(entry: Misnamed) -> Axes | None:
    if entry.module in ADDED:
        return None
    return Axes(0, 1) if entry.module in TRANSPOSED else Axes(1, 0)


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
