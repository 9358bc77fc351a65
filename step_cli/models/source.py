"""Which model a checkpoint is of: by ``--model``, or by ``model.json`` beside it.

Without torch, as an ONNX file needs no model.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from step_cli.config.document import absolute_spec
from step_cli.errors import InputError, UsageError
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.files.json_text import read_json
from step_cli.formats.huggingface.directory import inside
from step_cli.formats.huggingface.model import is_hugging_face

FILE = "model.json"
SCHEMA = "step-cli/model/1"
LARGEST = 1 << 20  # bytes


@dataclass(frozen=True)
class ModelSource:
    """What builds a model: ``[model] source`` and ``options`` of a configuration."""

    spec: str
    options: Mapping[str, Any] = field(default_factory=dict)


def write_source(directory: Path, source: ModelSource) -> None:
    """Write ``model.json`` into a directory of weights."""
    document = {
        "schema": SCHEMA,
        "source": source.spec,
        "options": dict(source.options),
    }
    text = json.dumps(document, indent=2) + "\n"
    (directory / FILE).write_text(text, encoding="utf-8")


def read_source(directory: Path) -> ModelSource | None:
    """What ``model.json`` of a directory names; None if there is none.

    Raises:
        InputError: It names nothing, or is not of this version.
    """
    if not os.path.lexists(directory / FILE):
        return None
    path = inside(directory, FILE)
    document = read_json(path, "the model's source", limit_bytes=LARGEST)
    spec, options = document.get("source"), document.get("options", {})
    known = document.get("schema") == SCHEMA
    if not known or not isinstance(spec, str) or not isinstance(options, dict):
        raise InputError(f"names no model by {SCHEMA}; pass --model", file=path)
    return ModelSource(spec, options)


def model_source(spec: str | None, checkpoint: Checkpoint) -> ModelSource:
    """What builds the model of a checkpoint: the user's, else what is recorded in it.

    Args:
        spec: The user's --model, if given.
        checkpoint: Whose model is to be built.

    Raises:
        UsageError: There is neither, or the checkpoint names code of the user.
    """
    home = checkpoint.path / "model" if checkpoint.format == "run" else checkpoint.path
    recorded = read_source(home)
    if spec is not None:
        return _with_options(spec, recorded)
    if is_hugging_face(home):
        return ModelSource(str(home))
    if recorded is None:
        raise UsageError(
            "the checkpoint does not name its model; pass --model "
            "sample:NAME, a Hugging Face directory, or net.py:build",
            file=checkpoint.path,
        )
    if not recorded.spec.startswith("sample:"):
        raise UsageError(
            f"the run's model is code ({recorded.spec}), which is never run by itself; "
            "pass --model net.py:build",
            file=checkpoint.path,
        )
    return recorded


def _with_options(spec: str, recorded: ModelSource | None) -> ModelSource:
    """The options of training belong to the model that was trained, and to no other."""
    if recorded is not None and absolute_spec(spec) == recorded.spec:
        return recorded
    return ModelSource(spec)
