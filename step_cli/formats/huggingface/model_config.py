"""What a parsed ``config.json`` says of the model: its kinds and its widths."""

from collections.abc import Iterator
from typing import Any

from step_cli.nm.families import ModelConfig

DEEPEST = 3  # levels of parts below the whole: of composed models, one or two are used
MOST = 10_000  # parts that are looked at
WIDTHS = ("hidden_size", "n_embd", "d_model")


def model_config(config: object) -> ModelConfig:
    """Collect the model types and hidden sizes of a configuration and of its parts.

    Args:
        config: As parsed; what is no object, or has other types than it should, says
            nothing.
    """
    types: dict[str, None] = {}
    widths: set[int] = set()
    for part in _parts(config):
        kind = part.get("model_type")
        if isinstance(kind, str):
            types[kind] = None
        widths |= {part[key] for key in WIDTHS if type(part.get(key)) is int}
    return ModelConfig(tuple(types), frozenset(width for width in widths if width > 0))


def _parts(config: object) -> Iterator[dict[str, Any]]:
    """The whole and its parts, level by level, as dictionaries."""
    level: list[object] = [config]
    seen = 0
    for _ in range(DEEPEST + 1):
        below: list[object] = []
        for part in level:
            seen += 1
            if seen > MOST:
                return
            if isinstance(part, dict):
                yield part
            if isinstance(part, (dict, list)):
                inside = part.values() if isinstance(part, dict) else part
                below += [each for each in inside if isinstance(each, (dict, list))]
        level = below
