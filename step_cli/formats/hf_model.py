"""Build a Hugging Face model from its ``config.json``: library classes, no remote code.

Weights come through our own readers, so that no pickle of the directory is loaded.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from step_cli.errors import InputError, MissingError, StepError
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.graph_input import Dimension, GraphInput
from step_cli.formats.quiet import quiet

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class HuggingFaceModel:
    """A model, what it takes, and the number that its integer inputs stay below."""

    model: "nn.Module"
    inputs: list[GraphInput]
    vocabulary: int


def is_hugging_face(path: Path) -> bool:
    """Whether it is a directory with a model's configuration."""
    return (path / "config.json").is_file()


def build_hugging_face(directory: Path) -> HuggingFaceModel:
    """The untrained model of a directory, as its ``architectures`` names it.

    Raises:
        MissingError: transformers is not installed.
        InputError: transformers does not know the model, or it needs remote code.
    """
    try:
        with quiet():
            import transformers
    except ImportError:
        raise MissingError(
            "this model needs transformers: pip install 'step-cli[hf]'"
        ) from None
    try:
        raw = json.loads((directory / "config.json").read_text(encoding="utf-8"))
        names = raw.get("architectures") or [""]
        with quiet():
            config = transformers.AutoConfig.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False
            )
            config.use_cache = False  # a cache is an output that no engine needs
            kind: Any = getattr(transformers, str(names[0]), None)
            anything: Any = transformers.AutoModel
            model = anything.from_config(config) if kind is None else kind(config)
    except StepError:
        raise
    except Exception as error:  # transformers raises of every kind
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"transformers cannot build this model: {line[:200]}", file=directory
        ) from None
    return HuggingFaceModel(model, _inputs(config), _vocabulary(config))


def _vocabulary(config: Any) -> int:
    text = getattr(config, "vocab_size", None)
    return text if isinstance(text, int) and text > 1 else 2


def _inputs(config: Any) -> list[GraphInput]:
    """What such a model takes: pixels for vision, ids and mask for text."""
    size = getattr(config, "image_size", None)
    if isinstance(size, int):
        channels = int(getattr(config, "num_channels", 3))
        shape: tuple[Dimension, ...] = ("batch", channels, size, size)
        return [GraphInput("pixel_values", "float32", shape)]
    inputs = [
        GraphInput("input_ids", "int64", ("batch", "seq")),
        GraphInput("attention_mask", "int64", ("batch", "seq")),
    ]
    if getattr(config, "is_encoder_decoder", False):
        inputs.append(GraphInput("decoder_input_ids", "int64", ("batch", "target")))
    return inputs


def load_hugging_face(
    built: HuggingFaceModel, checkpoint: Checkpoint
) -> tuple["nn.Module", dict[str, str]]:
    """Put the tensors of a checkpoint into a model.

    A checkpoint of the bare model lacks the prefix that its names have below a head.

    Returns:
        The model with its weights, and its name of each tensor of the checkpoint.

    Raises:
        InputError: A tensor has no place, or a weight is missing.
    """
    import torch

    from step_cli.formats.torch_arrays import to_tensor

    wanted = built.model.state_dict()
    prefix = f"{getattr(built.model, 'base_model_prefix', '')}."
    places, problem = _places(wanted, checkpoint, prefix)
    if problem is not None:
        return _by_transformers(built, checkpoint, problem)
    with torch.no_grad():
        for tensor in checkpoint.tensors:
            if tensor.name in places:
                wanted[places[tensor.name]].copy_(to_tensor(tensor.read()))
    return built.model, places


def _places(
    wanted: "Mapping[str, Tensor]", checkpoint: Checkpoint, prefix: str
) -> tuple[dict[str, str], str | None]:
    """Where each tensor goes, and what does not fit."""
    places, unknown = dict[str, str](), []
    for tensor in checkpoint.tensors:
        options = (tensor.name, prefix + tensor.name, tensor.name.removeprefix(prefix))
        place = next((name for name in options if name in wanted), None)
        if place is not None and tuple(wanted[place].shape) == tensor.shape:
            places[tensor.name] = place
        elif place is not None or "float" in tensor.dtype:
            unknown.append(tensor.name)
    # Tied weights are stored once: whatever shares memory with a given one is given.
    given = {wanted[place].data_ptr() for place in places.values()}
    missing = [
        name
        for name, value in wanted.items()
        if value.is_floating_point() and value.data_ptr() not in given
    ]
    for found, what in ((unknown, "the model has no"), (missing, "the file lacks")):
        if found:
            more = f" and {len(found) - 3} more" if len(found) > 3 else ""
            names = ", ".join(found[:3])
            return places, f"{what} {names}{more}; it is not of this model"
    return places, None


def _by_transformers(
    built: HuggingFaceModel, checkpoint: Checkpoint, problem: str
) -> tuple["nn.Module", dict[str, str]]:
    """Let transformers load its own directory, as it renames tensors of old models.

    Which tensor became which is then known by their values alone.
    """
    import torch

    safe = all(file.suffix == ".safetensors" for file in checkpoint.files)
    if not is_hugging_face(checkpoint.path) or not safe:
        raise InputError(problem, file=checkpoint.path)
    with quiet():
        model, info = type(built.model).from_pretrained(  # type: ignore[attr-defined]
            str(checkpoint.path),
            config=built.model.config,
            local_files_only=True,
            use_safetensors=True,
            dtype=torch.float32,
            output_loading_info=True,
        )
    if info["missing_keys"] or info["unexpected_keys"] or info["mismatched_keys"]:
        raise InputError(problem, file=checkpoint.path)
    return model, _same_values(model, checkpoint)


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
