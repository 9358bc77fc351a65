"""Put the tensors of a checkpoint into a Hugging Face model.

Names differ in three known ways: a checkpoint of the bare model lacks the prefix that
its names have below a head, tied weights are stored once, and old files say ``gamma``
and ``beta``. What else transformers renames is left to transformers.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from step_cli.errors import InputError
from step_cli.formats.checkpoint import Checkpoint, NamedTensor
from step_cli.formats.quiet import quiet

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger(__name__)


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
            head then keeps its random weights. The log says so.

    Returns:
        The model's name of each tensor of the checkpoint.

    Raises:
        InputError: A tensor has no place, or a weight is missing.
    """
    import torch

    from step_cli.formats.torch_arrays import to_tensor

    whole = found = fit_names(model, checkpoint.tensors)
    if new_head:
        found = _without_heads(model, whole, checkpoint)
    if found.problem is not None:
        return _by_transformers(model, checkpoint, found.problem)
    for names, what in (
        (whole.missing, "new, with random weights"),
        (whole.unknown, "not used"),
    ):
        if names:
            log.warning("%s: %s: %s", checkpoint.path, what, _few(names))
    wanted = model.state_dict()
    with torch.no_grad():
        for tensor in checkpoint.tensors:
            if tensor.name in found.places:
                wanted[found.places[tensor.name]].copy_(to_tensor(tensor.read()))
    return found.places


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


def _by_transformers(
    model: Any, checkpoint: Checkpoint, problem: str
) -> dict[str, str]:
    """Let transformers load its own directory, as it renames tensors of old models.

    Which tensor became which is then known by their values alone.
    """
    import torch

    safe = all(file.suffix == ".safetensors" for file in checkpoint.files)
    if not (checkpoint.path / "config.json").is_file() or not safe:
        raise InputError(problem, file=checkpoint.path)
    try:
        with quiet():
            loaded, info = type(model).from_pretrained(
                str(checkpoint.path),
                config=model.config,
                local_files_only=True,
                use_safetensors=True,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except Exception:  # of every kind; ours says more
        raise InputError(problem, file=checkpoint.path) from None
    if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        raise InputError(problem, file=checkpoint.path)
    model.load_state_dict(loaded.state_dict())
    return _same_values(model, checkpoint)


def _same_values(model: "nn.Module", checkpoint: Checkpoint) -> dict[str, str]:
    import torch

    from step_cli.formats.torch_arrays import to_tensor

    free = dict(model.state_dict())
    places = {}
    for tensor in checkpoint.tensors:
        values = to_tensor(tensor.read()).float()
        for name, own in free.items():
            if tuple(own.shape) == tensor.shape and torch.equal(own.float(), values):
                places[tensor.name] = name
                del free[name]
                break
    return places
