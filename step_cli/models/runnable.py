"""A model with the weights of a checkpoint, ready to run, in little memory.

`models.of_checkpoint` finds out which model it is, `models.spec` builds it.

The weights of a Hugging Face model are mapped from the checkpoint and cast to fp32 only
while a module computes. A model from code is in memory, as its code builds it there.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from step_cli.errors import StepError
from step_cli.formats.checkpoint import Checkpoint, NamedTensor
from step_cli.formats.huggingface.load import fit_names
from step_cli.formats.huggingface.model import build_hugging_face, is_hugging_face
from step_cli.formats.pytorch.arrays import mapped_tensor
from step_cli.models.source import ModelSource
from step_cli.models.spec import build_model, load_weights


@dataclass(frozen=True)
class RunnableModel:
    """A model in evaluation mode.

    Attributes:
        model: The module.
        names: The model's name of each tensor of the checkpoint that it has.
        examples: Inputs from the model's source, or None.
    """

    model: nn.Module
    names: Mapping[str, str]
    examples: Mapping[str, Tensor] | None

    def stored_twice(self) -> set[tuple[nn.Module, str]]:
        """What the checkpoint has under several names, as its module has several."""
        modules = dict(self.model.named_modules(remove_duplicate=False))
        places = [place.rpartition(".") for place in self.names.values()]
        counts = Counter((modules.get(module), name) for module, _, name in places)
        return {
            (module, name)
            for (module, name), count in counts.items()
            if module is not None and count > 1
        }


def open_model(
    source: ModelSource, checkpoint: Checkpoint, *, wide: bool = True
) -> RunnableModel:
    """Build the model and give it the weights of the checkpoint.

    Args:
        source: What builds it.
        checkpoint: Its weights.
        wide: Whether it is to compute in fp32, whatever its weights are stored in.

    Raises:
        UsageError: The source names no model.
        InputError: The weights do not fit the model.
        MissingError: A library it needs is not installed.
    """
    mapped = _mapped(source, checkpoint)
    in_fp64 = False
    if mapped is None:
        mapped = _in_memory(source, checkpoint)
        in_fp64 = any(x.dtype == torch.float64 for x in mapped.model.parameters())
    mapped.model.eval().requires_grad_(False)
    _leave_weights(mapped.model)
    if wide:
        compute_in_fp32(mapped.model, but_fp64=in_fp64)
    return mapped


def _leave_weights(model: nn.Module) -> None:
    """Have a model not write to its weights, which may be mapped and read only.

    RWKV halves some of them every few blocks, so that fp16 does not overflow.
    """
    config = getattr(model, "config", None)
    if getattr(config, "rescale_every", 0):
        config.rescale_every = 0  # type: ignore[union-attr]


def _in_memory(source: ModelSource, checkpoint: Checkpoint) -> RunnableModel:
    built = build_model(source.spec, source.options)
    names = load_weights(built.model, checkpoint)
    return RunnableModel(built.model, names, built.example_inputs)


def _mapped(source: ModelSource, checkpoint: Checkpoint) -> RunnableModel | None:
    """A Hugging Face model with mapped weights; None where names do not simply fit."""
    directory = Path(source.spec)
    if not is_hugging_face(directory):
        return None
    try:
        with _without_data():
            model = build_hugging_face(directory, source.options).model
    except StepError:
        return None  # building it with data works, or raises the same
    names = fit_names(model, checkpoint.tensors).places
    given = {t.name: t for t in checkpoint.tensors}
    _attach(model, {place: given[name] for name, place in names.items()})
    if any(parameter.is_meta for parameter in model.parameters()):
        return None
    return RunnableModel(model, names, None)


@contextmanager
def _without_data() -> Iterator[None]:
    """Modules made inside have parameters without data; buffers are real."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, value: nn.Parameter | None) -> None:
        register(module, name, value)
        if value is not None and not value.is_meta:  # else it is tied to another
            meta = nn.Parameter(value.to("meta"), value.requires_grad)
            module._parameters[name] = meta

    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]


def _attach(model: nn.Module, tensors: Mapping[str, NamedTensor]) -> None:
    """Make parameters of mapped data; those that were one stay one."""
    made: dict[int, nn.Parameter] = {}
    for prefix, module in model.named_modules():
        for name, old in list(module._parameters.items()):
            tensor = tensors.get(f"{prefix}.{name}" if prefix else name)
            if old is not None and tensor is not None and id(old) not in made:
                data = mapped_tensor(tensor.read())
                made[id(old)] = nn.Parameter(data, requires_grad=False)
        for name, buffer in list(module._buffers.items()):
            tensor = tensors.get(f"{prefix}.{name}" if prefix else name)
            if buffer is not None and tensor is not None:
                buffer.copy_(mapped_tensor(tensor.read()))
    for module in model.modules():
        for name, old in list(module._parameters.items()):
            if old is not None and id(old) in made:
                module._parameters[name] = made[id(old)]


def compute_in_fp32(model: nn.Module, *, but_fp64: bool = False) -> None:
    """Have every module compute with fp32 copies of what it stores otherwise.

    Args:
        model: Changed in place; also parameters that it gets later are cast.
        but_fp64: Whether fp64 stays as it is, as the model's own code has it so.
    """
    narrow = {torch.float16, torch.bfloat16}
    casts_of = narrow if but_fp64 else narrow | {torch.float64}
    for module in model.modules():
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.dtype in narrow:
                module._buffers[name] = buffer.float()
        if isinstance(module, nn.Embedding):  # too large to cast for a few rows
            module.register_forward_hook(partial(_widened, casts_of))
        else:
            modules: list[nn.Module] = [module]
            if isinstance(module, nn.MultiheadAttention):
                # It multiplies the weight of its last layer by itself.
                modules.append(module.out_proj)
            for cast in modules:
                if any(value is not None for value in cast._parameters.values()):
                    casts = _Casts(casts_of, cast._parameters)
                    module.register_forward_pre_hook(casts.before, with_kwargs=True)
                    module.register_forward_hook(casts.after, always_call=True)


def _widened(
    dtypes: Collection[torch.dtype], module: nn.Module, args: tuple[Any, ...], out: Any
) -> Any:
    return out.float() if isinstance(out, Tensor) and out.dtype in dtypes else out


class _Casts:
    """Puts fp32 copies in the place of a module's parameters while it computes.

    Args:
        dtypes: Those of what is cast.
        parameters: By name.
    """

    def __init__(
        self, dtypes: Collection[torch.dtype], parameters: dict[str, Any]
    ) -> None:
        self._dtypes, self._parameters = dtypes, parameters
        self._stored: dict[str, nn.Parameter] = {}

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        for name, value in self._parameters.items():
            if value is not None and value.dtype in self._dtypes:
                self._stored[name] = value
                # What is being fitted gets its gradient through the cast.
                fitted, wide = value.requires_grad, value.float()
                self._parameters[name] = wide if fitted else nn.Parameter(wide, False)
        if not self._stored:
            return None
        # Such as T5's, which are first cast to the dtype that the weight is stored in.
        return (
            tuple(self._wide(value) for value in args),
            {key: self._wide(value) for key, value in kwargs.items()},
        )

    def _wide(self, value: Any) -> Any:
        narrow = isinstance(value, Tensor) and value.dtype in self._dtypes
        return value.float() if narrow else value

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._parameters.update(self._stored)
        self._stored.clear()
