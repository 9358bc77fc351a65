"""What a ``config.json`` tells of how its model's weights are stored."""

from pathlib import Path
from typing import Any

from step_cli.errors import InputError
from step_cli.formats.files.json_text import json_object
from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.huggingface.directory import inside
from step_cli.nm.families import ModelConfig

LARGEST_CONFIG = 16 << 20  # bytes
DEEPEST = 3  # parts within parts


def model_config_in(directory: Path) -> ModelConfig:
    """What the config of a directory tells; nothing, if it is missing or broken."""
    try:
        file = map_file(inside(directory, "config.json"))
        if file.size > LARGEST_CONFIG:
            return ModelConfig()
        config = json_object(file.head(file.size), "config.json", file=file.path)
    except InputError:
        return ModelConfig()
    return model_config_of(config)


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
