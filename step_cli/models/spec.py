"""From a SPEC to a model: ``sample:NAME``, a Hugging Face directory, or Python code.

Python runs only when the user names it here; nothing is imported because a checkpoint
names it, and nothing is downloaded.
"""

import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from step_cli.config.samples import load_sample
from step_cli.errors import InputError, StepError, UsageError, nearest
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.huggingface.directory import has_weights
from step_cli.formats.huggingface.load import load_hugging_face
from step_cli.formats.huggingface.model import (
    build_hugging_face,
    is_hugging_face,
    is_transformers,
    without_cache,
)
from step_cli.formats.onnx.inputs import GraphInput
from step_cli.formats.open import open_checkpoint
from step_cli.formats.pytorch.arrays import to_tensor
from step_cli.models.start_weights import (
    load_by_any_prefix,
    refuse_non_finite,
    turned,
)
from step_cli.models.user_code import beside, hint, user_module

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuiltModel:
    """A model, and what is known of the inputs of its ``forward``.

    Attributes:
        model: The module.
        example_inputs: By name, where its source gives some.
        inputs: Their names, types and shapes, where its configuration has them.
        vocabulary: Integer inputs stay below it.
    """

    model: nn.Module
    example_inputs: dict[str, Tensor] | None
    inputs: Sequence[GraphInput] = ()
    vocabulary: int = 2


def build_model(spec: str, options: Mapping[str, Any] | None = None) -> BuiltModel:
    """Build the untrained model that ``spec`` names.

    Args:
        spec: ``sample:NAME``, a Hugging Face directory, ``file.py:function`` or
            ``package.module:function``; the function returns a module.
        options: Keyword arguments of the function, or values that replace those of
            the directory's ``config.json``.

    Raises:
        UsageError: The SPEC names nothing, or takes no such option.
        InputError: The user's function raised, or returned no module.
        MissingError: A library the model needs is not installed.
    """
    options = options or {}
    if is_hugging_face(Path(spec)):
        built = build_hugging_face(Path(spec), options)
        return BuiltModel(built.model, None, built.inputs, built.vocabulary)
    if spec.startswith("sample:"):
        sample = load_sample(spec.removeprefix("sample:"), "model")
        return _built(sample, "build", spec, options)
    with beside(spec):
        return _built(_module_of(spec), spec.rpartition(":")[2], spec, options)


def _built(
    module: ModuleType, name: str, spec: str, options: Mapping[str, Any]
) -> BuiltModel:
    model = _call(_function(module, name, spec), options, spec)
    examples = getattr(module, "example_inputs", None)
    return BuiltModel(model, examples() if callable(examples) else None)


def start_model(
    spec: str, options: Mapping[str, Any] | None = None, weights: str = ""
) -> nn.Module:
    """Build the model of ``spec`` with the weights that training starts from.

    Args:
        spec: As for `build_model`.
        options: As for `build_model`.
        weights: Path of a checkpoint; without one, those of a Hugging Face directory
            that has some, else random ones. Of another head they are left out.

    Raises:
        NonFiniteError: A weight is NaN or infinite.
        StepError: As `build_model`, or the weights do not fit.
    """
    model = build_model(spec, options).model
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(value) or value.is_meta:
            what = "has no shape yet" if is_lazy(value) else "is on the meta device"
            raise InputError(
                f"model source {spec!r}: {name} {what}; return a model with its weights"
            )
    if not weights and is_hugging_face(Path(spec)):
        if has_weights(Path(spec)):
            weights = spec
        else:
            logger.warning("%s holds no weights: starting from random ones", spec)
    places: dict[str, str] = {}
    if weights:
        places = load_weights(model, open_checkpoint(Path(weights)), new_head=True)
    refuse_non_finite(model, weights or f"model source {spec!r}", places)
    return model


def _module_of(spec: str) -> ModuleType:
    place, colon, _ = spec.rpartition(":")
    if not colon or not place:
        what = "has no config.json" if Path(spec).is_dir() else "names no model"
        raise UsageError(
            f"model source {spec!r} {what}; use sample:NAME, a Hugging Face directory, "
            "file.py:function or package.module:function"
        )
    try:
        return user_module(place, spec)
    except StepError:
        raise
    except ImportError as error:
        raise UsageError(f"model source {spec!r} cannot be imported: {error}") from None
    except (Exception, SystemExit) as error:
        raise InputError(
            f"model source {spec!r} raised {_first_line(error)}{hint(error, spec)}"
        ) from error


def _function(module: ModuleType, name: str, spec: str) -> Callable[..., Any]:
    found = getattr(module, name, None)
    if callable(found):
        return found  # type: ignore[no-any-return]
    known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
    raise UsageError(
        f"model source {spec!r}: no function {name!r}{nearest(name, known)}"
    )


def _call(
    function: Callable[..., Any], options: Mapping[str, Any], spec: str
) -> nn.Module:
    try:
        inspect.signature(function).bind(**options)
    except TypeError as error:
        raise UsageError(f"model.options: {spec!r}: {error}") from None
    try:
        model = function(**options)
    except StepError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(
            f"model source {spec!r} raised {_first_line(error)}{hint(error, spec)}"
        ) from error
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise InputError(f"model source {spec!r} returned {kind}, not a torch module")
    return without_cache(model) if is_transformers(model) else model


def _first_line(error: BaseException) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0]}" if first else type(error).__name__


def load_weights(
    model: nn.Module, checkpoint: Checkpoint, *, new_head: bool = False
) -> dict[str, str]:
    """Put the tensors of a checkpoint into a model, which must have the same names.

    A prefix that all names have, or lack, is no difference; that is logged.

    Args:
        model: Changed in place.
        checkpoint: Of that model.
        new_head: Whether a model of transformers may keep a head of its own.

    Returns:
        The model's name of each tensor of the checkpoint.

    Raises:
        InputError: A name or shape differs.
    """
    load = _load_by_name
    if is_transformers(model):
        load = partial(load_hugging_face, new_head=new_head)
    return load_by_any_prefix(
        model, checkpoint, lambda given: load(model, turned(model, given))
    )


def _load_by_name(model: nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
    _refuse_other_model(model.state_dict(), checkpoint)
    state = {tensor.name: to_tensor(tensor.read()) for tensor in checkpoint.tensors}
    model.load_state_dict(state, strict=False)
    return {name: name for name in state}


def _refuse_other_model(own: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    """Raise InputError where a name or a shape of the checkpoint is not the model's."""
    given = {tensor.name: tensor for tensor in checkpoint.tensors}
    # Counters such as BatchNorm's may be left out by tools that keep weights only.
    needed = {name for name, value in own.items() if value.is_floating_point()}
    for found, what in (
        (sorted(needed - given.keys()), "the checkpoint lacks"),
        (sorted(given.keys() - own.keys()), "the model does not know"),
        (
            [
                f"{name} {list(given[name].shape)} for {list(own[name].shape)}"
                for name in sorted(given.keys() & own.keys())
                if given[name].shape != tuple(own[name].shape)
            ],
            "shapes differ:",
        ),
        (
            [
                f"{name} ({given[name].dtype})"
                for name in sorted(needed & given.keys())
                if "float" not in given[name].dtype
            ],
            "no numbers of weights, but codes or whole numbers:",
        ),
    ):
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            raise InputError(
                f"{what} {', '.join(found[:3])}{more}; it is not of this model",
                file=checkpoint.path,
            )
