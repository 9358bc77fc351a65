"""What a ``config.json`` tells of the weights beside it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from step_cli.errors import InputError
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.files.json_text import json_object
from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.huggingface.directory import inside
from step_cli.formats.huggingface.sparsity_config import left_dense
from step_cli.nm.families import ModelConfig

LARGEST_CONFIG = 16 << 20  # bytes
DEEPEST = 3  # parts within parts


def with_config(checkpoint: Checkpoint, directory: Path) -> Checkpoint:
    """The same checkpoint, with what the config of a directory tells of it.

    Raises:
        InputError: Reading what it left dense takes too long.
    """
    config = _read(directory)
    return replace(
        checkpoint,
        model_config=model_config_of(config),
        left_dense=left_dense(config, checkpoint.tensors, directory / "config.json"),
    )


def _read(directory: Path) -> dict[str, Any]:
    """The config; nothing, if it is missing or broken."""
    try:
        file = map_file(inside(directory, "config.json"))
        if file.size > LARGEST_CONFIG:
            return {}
        return json_object(file.head(file.size), "config.json", file=file.path)
    except InputError:
        return {}


def model_config_of(config: dict[str, Any]) -> ModelConfig:
    """What a config tells, with all the configs inside it."""
    parts, deeper = [config], [config]
    for _ in range(DEEPEST):
        values = [value for part in deeper for value in part.values()]
        values += [x for value in values if isinstance(value, list) for x in value]
        deeper = [value for value in values if isinstance(value, dict)]
        parts += deeper
    kinds = [part.get("model_type") for part in parts]
    sizes = [part.get("hidden_size") for part in parts]
    return ModelConfig(
        tuple(dict.fromkeys(kind for kind in kinds if isinstance(kind, str))),
        frozenset(size for size in sizes if type(size) is int),
    )
