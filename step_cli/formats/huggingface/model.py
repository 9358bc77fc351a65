"""Build a Hugging Face model from its ``config.json``: library classes, no remote code.

Weights come through our own readers (`load`), so that no pickle is loaded.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from step_cli.errors import (
    InputError,
    MissingError,
    StepError,
    UsageError,
    nearest,
)
from step_cli.formats.huggingface.sparsity_config import (
    HOLDERS,
    KEY,
    remove_sparsity_config,
)
from step_cli.formats.onnx.inputs import Dimension, GraphInput
from step_cli.formats.quiet import quiet

if TYPE_CHECKING:
    from torch import nn

LIBRARY = "transformers."
DEFAULT_IMAGE = 224  # pixels


@dataclass(frozen=True)
class HuggingFaceModel:
    """A model, what it takes, and the number that its integer inputs stay below."""

    model: "nn.Module"
    inputs: list[GraphInput]
    vocabulary: int


def is_hugging_face(path: Path) -> bool:
    """Whether it is a directory with a model's configuration."""
    return (path / "config.json").is_file()


def is_transformers(model: "nn.Module") -> bool:
    """Whether a model is of a class of transformers, so that its library can load it.

    A subclass of the user's is not: the directory would not name its code.
    """
    if not any(
        kind.__name__ == "PreTrainedModel" and kind.__module__.startswith(LIBRARY)
        for kind in type(model).__mro__
    ):
        return False
    import transformers

    name = type(model).__name__.removeprefix("FSDP")  # as fully_shard calls it
    return isinstance(model, getattr(transformers, name, ()))


def build_hugging_face(
    directory: Path, options: Mapping[str, Any] | None = None
) -> HuggingFaceModel:
    """The untrained model of a directory, as its ``architectures`` names it.

    Args:
        directory: With a ``config.json``; nothing else of it is read.
        options: Values that replace those of ``config.json``.

    Raises:
        MissingError: transformers is not installed.
        UsageError: The configuration has no such option.
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
        with quiet():
            config: Any = transformers.AutoConfig.from_pretrained(
                str(directory), local_files_only=True, trust_remote_code=False
            )
            if options:
                config = _with_options(config, options)
            _forget_sparsity_config(config)
            model = _class_of(config, directory)(config)
    except StepError:
        raise
    except Exception as error:  # transformers raises of every kind
        said = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"transformers cannot build this model: {said[:200]}", file=directory
        ) from None
    return HuggingFaceModel(without_cache(model), *inputs_of(model))


def inputs_of(model: Any) -> tuple[list[GraphInput], int]:
    """What a model takes, as far as it is known, and what its integers stay below."""
    inputs = _inputs(model.config)
    if inputs[0].name not in inspect.signature(model.forward).parameters:
        inputs = []  # neither text nor pixels: the user has to give them
    return inputs, _vocabulary(model.config)


def _with_options(config: Any, options: Mapping[str, Any]) -> Any:
    """The configuration made anew, as some of its values follow from others."""
    values = config.to_dict()
    for key in options:
        if not hasattr(config, key):
            hint = nearest(key, [*values, "num_labels"])
            raise UsageError(
                f"model.options: {config.model_type} has no option {key}{hint}"
            )
    if "num_labels" in options:  # which these would overrule
        values.pop("id2label", None)
        values.pop("label2id", None)
    return type(config).from_dict(values | dict(options))


def _forget_sparsity_config(config: Any) -> None:
    """Take it out: saved with new weights, it would keep others from loading them."""
    names = (*HOLDERS, KEY)
    held = {name: vars(config)[name] for name in names if name in vars(config)}
    if remove_sparsity_config(held):
        for name in set(names) - held.keys():
            vars(config).pop(name, None)


def _class_of(config: Any, directory: Path) -> Any:
    """The class of transformers that ``architectures`` names, else the bare model."""
    import transformers

    names = config.architectures
    if not names:
        return transformers.MODEL_MAPPING[type(config)]
    kind: Any = getattr(transformers, str(names[0]), None)
    if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
        raise InputError(
            f"transformers has no model {names[0]!r}; code of a model's own is never "
            "run",
            file=directory / "config.json",
        )
    if not isinstance(config, kind.config_class or ()):
        raise InputError(
            f"architectures names {names[0]}, which is no {config.model_type}",
            file=directory / "config.json",
        )
    return kind


def without_cache(model: "nn.Module") -> "nn.Module":
    """Have a model return no cache of keys and values unless its caller sets that.

    Neither training nor an engine needs it. The configuration, which is saved with the
    weights, is left as it is.
    """
    if "use_cache" in inspect.signature(model.forward).parameters:
        model.register_forward_pre_hook(_no_cache, with_kwargs=True)
    return model


def _no_cache(
    model: "nn.Module", args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, {"use_cache": False, **kwargs}


def _vocabulary(config: Any) -> int:
    text = getattr(config, "vocab_size", None)
    return text if isinstance(text, int) and text > 1 else 2


def _inputs(config: Any) -> list[GraphInput]:
    """What such a model takes: pixels for vision, ids and mask for text."""
    size = getattr(config, "image_size", None)
    if size is None and hasattr(config, "num_channels"):
        size = DEFAULT_IMAGE  # of a convolutional model, which takes any
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
