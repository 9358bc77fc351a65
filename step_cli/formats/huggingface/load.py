"""Put the tensors of a checkpoint into a Hugging Face model.

Names differ in three known ways: a checkpoint of the bare model lacks the prefix that
its names have below a head, tied weights are stored once, and old files have ``gamma``
and ``beta``. What else transformers renames is left to transformers.
"""

import copy
import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from step_cli.errors import InputError
from step_cli.formats.checkpoint import Checkpoint, NamedTensor
from step_cli.formats.quiet import quiet

if TYPE_CHECKING:
    from torch import Tensor, nn

log = logging.getLogger(__name__)
Values = Iterator[tuple[str, "Tensor"]]


@dataclass(frozen=True)
class Fit:
    """How the tensors of a checkpoint fit a model.

    Attributes:
        places: The model's name of each tensor that has a place.
        unknown: Tensors without a place, or of another shape.
        missing: Weights of the model that no tensor gives.
    """

    places: dict[str, str]
    unknown: list[str]
    missing: list[str]

    @property
    def problem(self) -> str | None:
        """What does not fit, or None."""
        for names, what in (
            (self.unknown, "the model has no"),
            (self.missing, "the file lacks"),
        ):
            if names:
                return f"{what} {_few(names)}; it is not of this model"
        return None


def load_hugging_face(
    model: "nn.Module", checkpoint: Checkpoint, *, new_head: bool = False
) -> dict[str, str]:
    """Put the tensors of a checkpoint into a model, in place.

    Args:
        model: Of transformers.
        checkpoint: Of the same architecture.
        new_head: Whether the checkpoint may have another head than the model, whose
            head then keeps its random weights. That is logged.

    Returns:
        The model's name of each tensor of the checkpoint.

    Raises:
        InputError: A tensor has no place, or a weight is missing.
    """
    import torch

    problems = []
    for read in (_by_name, _by_transformers):
        found, values = read(model, checkpoint)
        kept = _without_heads(model, found, checkpoint) if new_head else found
        if kept.problem is None:
            break
        problems.append(kept.problem)
    else:
        raise InputError(problems[0], file=checkpoint.path)
    wanted = model.state_dict()
    with torch.no_grad():
        for name, value in values:
            wanted[name].copy_(value)
    for names, what in (
        (found.missing, "new, with random weights"),
        (found.unknown, "not used"),
    ):
        if names:
            log.warning("%s: %s: %s", checkpoint.path, what, _few(names))
    return found.places


def _by_name(model: "nn.Module", checkpoint: Checkpoint) -> tuple[Fit, Values]:
    """What fits by the names, and its values under the names of the model."""
    found = fit_names(model, checkpoint.tensors)
    values = (
        (found.places[tensor.name], _read(tensor))
        for tensor in checkpoint.tensors
        if tensor.name in found.places
    )
    return found, values


def _by_transformers(model: Any, checkpoint: Checkpoint) -> tuple[Fit, Values]:
    """The same as transformers sees it, which renames and fuses tensors of old models.

    Which tensor became which is then known by their values alone.
    """
    try:
        with quiet():
            loaded, info = type(model).from_pretrained(
                None,
                config=copy.deepcopy(model.config),
                state_dict={t.name: _read(t) for t in checkpoint.tensors},
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except Exception as error:  # of every kind
        log.debug("transformers", exc_info=error)
        return Fit({}, [tensor.name for tensor in checkpoint.tensors], []), iter(())
    misfits = {name for name, *_ in info["mismatched_keys"]}
    missing = {*info["missing_keys"], *misfits}
    unknown = {*info["unexpected_keys"], *misfits}
    state = {k: v for k, v in loaded.state_dict().items() if k not in missing}
    places = _same_values(state, checkpoint)
    return Fit(places, sorted(unknown), sorted(missing)), iter(state.items())


def _read(tensor: NamedTensor) -> "Tensor":
    from step_cli.formats.pytorch.arrays import to_tensor

    return to_tensor(tensor.read())


def fit_names(model: Any, tensors: Sequence[NamedTensor]) -> Fit:
    """Say which tensor is which weight of ``model``, a module of transformers."""
    wanted = model.state_dict()
    prefix = f"{model.base_model_prefix}."
    ignored = _patterns(model._keys_to_ignore_on_load_unexpected)
    places, unknown = dict[str, str](), []
    for tensor in tensors:
        options = [tensor.name, prefix + tensor.name, tensor.name.removeprefix(prefix)]
        options += [_modern(name) for name in options]
        place = next((name for name in options if name in wanted), None)
        needless = "float" not in tensor.dtype or ignored.search(tensor.name)
        if place is not None and tuple(wanted[place].shape) == tensor.shape:
            places[tensor.name] = place
        elif place is not None or not needless:
            unknown.append(tensor.name)
    # Tied weights are stored once: whatever shares memory with a given one is given.
    given = {wanted[place].data_ptr() for place in places.values()}
    made = _patterns(model._keys_to_ignore_on_load_missing)
    missing = [
        name
        for name, value in wanted.items()
        if value.is_floating_point()
        and value.data_ptr() not in given
        and not made.search(name)
    ]
    return Fit(places, sorted(unknown), sorted(missing))


def _modern(name: str) -> str:
    return re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", name))


def _patterns(given: Any) -> re.Pattern[str]:
    return re.compile("|".join(sorted(given or ())) or r"(?!)")


def _without_heads(model: Any, found: Fit, checkpoint: Checkpoint) -> Fit:
    """What does not fit below the heads of the model and of the checkpoint."""
    prefix = f"{model.base_model_prefix}."
    bare = not any(tensor.name.startswith(prefix) for tensor in checkpoint.tensors)

    def is_head(name: str, *, bare: bool) -> bool:
        pooler = "pooler" in name.split(".")
        return pooler or (not bare and not name.startswith(prefix))

    return Fit(
        found.places,
        [name for name in found.unknown if not is_head(name, bare=bare)],
        [name for name in found.missing if not is_head(name, bare=False)],
    )


def _few(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def places_of(model: "nn.Module", checkpoint: Checkpoint) -> dict[str, str]:
    """The model's name of each tensor of a checkpoint that was just saved from it."""
    places = fit_names(model, checkpoint.tensors).places
    if len(places) < len(checkpoint.tensors):
        return _same_values(model.state_dict(), checkpoint)
    return places


def _same_values(
    state: "Mapping[str, Tensor]", checkpoint: Checkpoint
) -> dict[str, str]:
    """The name in ``state`` of each tensor that stands there unchanged."""
    import torch

    free = dict(state)
    places = {}
    for tensor in checkpoint.tensors:
        values = _read(tensor).float()
        for name, own in free.items():
            if tuple(own.shape) == tensor.shape and torch.equal(own.float(), values):
                places[tensor.name] = name
                del free[name]
                break
    return places
