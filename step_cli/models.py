"""From a SPEC to a model: ``sample:NAME``, ``file.py:function``, ``module:function``.

Python runs only when the user names it here; nothing is imported because a checkpoint
says so.
"""

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import Tensor, nn

from step_cli.errors import InputError, StepError, UsageError
from step_cli.samples import load_module, load_sample


@dataclass(frozen=True)
class BuiltModel:
    """A model, and inputs of its ``forward`` by name where its source gives some."""

    model: nn.Module
    example_inputs: dict[str, Tensor] | None


def build_model(spec: str, *, relative_to: Path = Path()) -> BuiltModel:
    """Build the untrained model that ``spec`` names.

    Args:
        spec: ``sample:NAME``, ``file.py:function`` or ``package.module:function``; the
            function takes nothing and returns a module.
        relative_to: The directory that a ``file.py`` is relative to.

    Raises:
        UsageError: The SPEC names nothing.
        InputError: The user's function raised, or returned no module.
        MissingError: A library the model needs is not installed.
    """
    if spec.startswith("sample:"):
        module = load_sample(spec.removeprefix("sample:"), "model")
        return BuiltModel(_call(module.build, spec), module.example_inputs())
    module = _module_of(spec, relative_to)
    name = spec.rpartition(":")[2]
    model = _call(_function(module, name, spec), spec)
    examples = getattr(module, "example_inputs", None)
    return BuiltModel(model, examples() if callable(examples) else None)


def is_user_code(spec: str) -> bool:
    """Whether building ``spec`` runs code that did not come with step-cli."""
    return not spec.startswith("sample:")


def _module_of(spec: str, relative_to: Path) -> ModuleType:
    place, colon, _ = spec.rpartition(":")
    if not colon or not place:
        raise UsageError(
            f"model source {spec!r} names no model; use sample:NAME, file.py:function "
            "or package.module:function"
        )
    try:
        if place.endswith(".py"):
            path = relative_to / place
            if not path.is_file():
                raise UsageError(f"model source {spec!r}: no such file {path}")
            return load_module(path, f"step_cli_user_{path.resolve()}")
        return importlib.import_module(place)
    except StepError:
        raise
    except ImportError as error:
        raise UsageError(f"model source {spec!r} cannot be imported: {error}") from None
    except Exception as error:
        raise InputError(f"model source {spec!r} raised {_said(error)}") from error


def _function(module: ModuleType, name: str, spec: str) -> Callable[[], Any]:
    found = getattr(module, name, None)
    if callable(found):
        return found  # type: ignore[no-any-return]
    known = [key for key, value in vars(module).items() if inspect.isfunction(value)]
    close = get_close_matches(name, known, n=1)
    hint = f"; did you mean {close[0]!r}" if close else ""
    raise UsageError(f"model source {spec!r}: no function {name!r}{hint}")


def _call(function: Callable[[], Any], spec: str) -> nn.Module:
    try:
        model = function()
    except Exception as error:
        raise InputError(f"model source {spec!r} raised {_said(error)}") from error
    if not isinstance(model, nn.Module):
        kind = type(model).__name__
        raise InputError(f"model source {spec!r} returned {kind}, not a torch module")
    return model


def _said(error: Exception) -> str:
    first = str(error).strip().splitlines()
    return f"{type(error).__name__}: {first[0]}" if first else type(error).__name__
