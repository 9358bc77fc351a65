"""``model.json``: which model the weights beside it are of, where they cannot say."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from step_cli.errors import InputError
from step_cli.formats.files.json_text import read_json
from step_cli.formats.huggingface.directory import inside

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
    """What ``model.json`` of a directory says; None if there is none.

    Raises:
        InputError: It says nothing, or nothing of this version.
    """
    if not os.path.lexists(directory / FILE):
        return None
    path = inside(directory, FILE)
    document = read_json(path, "the model's source", limit_bytes=LARGEST)
    spec, options = document.get("source"), document.get("options", {})
    known = document.get("schema") == SCHEMA
    if not known or not isinstance(spec, str) or not isinstance(options, dict):
        raise InputError(f"does not say a model by {SCHEMA}; pass --model", file=path)
    return ModelSource(spec, options)
