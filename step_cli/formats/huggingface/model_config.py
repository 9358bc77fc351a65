"""What a ``config.json`` tells of the weights beside it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from step_cli.errors import InputError
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.files.json_text import json_object
from step_cli.formats.files.mapped_file import map_file
from step_cli.formats.huggingface.directory import inside
from step_cli.nm.families import ModelConfig

LARGEST_CONFIG = 16 << 20  # bytes
DEEPEST = 3  # parts within parts; composed models have one or two levels
MOST = 10_000  # parts that are looked at
WIDTHS = ("hidden_size", "n_embd", "d_model")  # as kinds of models call it
LENGTHS = (
    *("max_position_embeddings", "n_positions", "n_ctx"),
    *("max_source_positions", "max_target_positions", "max_seq_len", "seq_length"),
)
# Their positions are counted from behind that of the padding token.
POSITIONS_BEHIND_PADDING = {
    *("camembert", "data2vec-text", "esm", "ibert", "layoutlmv3", "lilt"),
    *("longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm"),
    *("xlm-roberta", "xlm-roberta-xl", "xmod"),
}


def with_config(checkpoint: Checkpoint, directory: Path) -> Checkpoint:
    """The same checkpoint, with what the config of a directory tells of it.

    Raises:
        InputError: Reading what it left dense takes too long.
    """
    config = read_config(directory)
    if not config:
        return checkpoint
    from step_cli.formats.huggingface.sparsity_config import left_dense

    return replace(
        checkpoint,
        model_config=model_config_of(config),
        left_dense=left_dense(config, checkpoint.tensors, directory / "config.json"),
    )


def gemm_plugin_in(directory: Path) -> str | None:
    """The plugin that an engine of TensorRT-LLM multiplies by, or None: there is none.

    Its ``config.json`` has ``build_config.plugin_config.gemm_plugin``.
    """
    for part in _parts(read_config(directory)):
        plugins = part.get("plugin_config")
        plugin = plugins.get("gemm_plugin") if isinstance(plugins, dict) else None
        if isinstance(plugin, str) and plugin.lower() not in ("", "none", "disable"):
            return plugin
    return None


def longest_input(model: object) -> int | None:
    """How many tokens a model takes; None: it has no config that tells it.

    Args:
        model: One of transformers has its config as ``config``.
    """
    return longest_by(getattr(model, "config", None))


def longest_by(config: object) -> int | None:
    """The same by a config of transformers, or any object with such attributes."""
    if config is not None and hasattr(config, "to_dict"):
        return _longest(config.to_dict())
    return _longest({name: getattr(config, name, None) for name in LENGTHS})


def longest_input_beside(file: Path) -> int | None:
    """The same of an ONNX file, by the ``config.json`` in its folder."""
    return _longest(read_config(file.parent))


def _longest(config: object) -> int | None:
    for part in _parts(config):
        found = [part[key] for key in LENGTHS if type(part.get(key)) is int]
        padding = part.get("pad_token_id")
        behind = str(part.get("model_type")) in POSITIONS_BEHIND_PADDING
        if behind and type(padding) is int:
            found = [length - padding - 1 for length in found]
        if (length := min(found, default=0)) > 0:
            return length
    return None


def read_config(directory: Path) -> dict[str, Any]:
    """The config; nothing, if it is missing or broken."""
    try:
        file = map_file(inside(directory, "config.json"))
        if file.size > LARGEST_CONFIG:
            return {}
        return json_object(file.head(file.size), "config.json", file=file.path)
    except InputError:
        return {}


def model_config_of(config: object) -> ModelConfig:
    """What a parsed config tells, with all the configs inside it.

    What is no object, or has other types than it should, tells nothing.
    """
    kinds: dict[str, None] = {}
    widths: set[int] = set()
    for part in _parts(config):
        kind = part.get("model_type")
        if isinstance(kind, str):
            kinds[kind] = None
        widths |= {part[key] for key in WIDTHS if type(part.get(key)) is int}
    return ModelConfig(tuple(kinds), frozenset(width for width in widths if width > 0))


def _parts(config: object) -> Iterator[dict[str, Any]]:
    """The whole and its parts, level by level."""
    level, seen = [config], 0
    for _ in range(DEEPEST + 1):
        below: list[object] = []
        for part in level:
            seen += 1
            if seen > MOST:
                return
            if isinstance(part, dict):
                yield part
                below += part.values()
            elif isinstance(part, list):
                below += part
        level = [part for part in below if isinstance(part, (dict, list))]
