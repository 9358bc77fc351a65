"""Weights that training or a measurement starts from: their names and their numbers.

What wrapped a model when its weights were saved is part of their names: ``module.`` of
DistributedDataParallel, ``model.`` of a Lightning module, ``_orig_mod.`` of a compiled
one. Where the names fit without it, or with it, it is left out or put before them, and
that is said.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from step_cli.errors import InputError, NonFiniteError
from step_cli.formats.checkpoint import Checkpoint, NamedTensor

logger = logging.getLogger(__name__)

# Modules that stand for the one they wrap, wherever in a name they are.
WRAPPERS = frozenset(
    {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
)
COUNTERS = frozenset({"n_averaged"})  # of what wraps a model, beside its weights
DEEPEST = 3  # parts of a prefix that are taken off, or put before

Places = dict[str, str]
Load = Callable[[Checkpoint], Places]


def load_by_any_prefix(model: nn.Module, checkpoint: Checkpoint, load: Load) -> Places:
    """Load a checkpoint, also where its names have a prefix that the model's lack.

    Args:
        model: For its names.
        checkpoint: Its weights.
        load: Puts the tensors of a checkpoint into the model and returns the model's
            name of each; it changes nothing where it raises InputError.

    Returns:
        The model's name of each tensor, by its name in ``checkpoint``.

    Raises:
        InputError: As ``load`` raises it for the names that fit best, with the prefix
            that they share.
    """
    try:
        return load(checkpoint)
    except InputError as error:
        return _load_renamed(list(model.state_dict()), checkpoint, load, error)


def turned(model: nn.Module, checkpoint: Checkpoint) -> Checkpoint:
    """The same weights as the model's Linear layers hold them: ``[out, in]``.

    An ONNX graph may multiply by the transposed weight under the same name, and of a
    square one no shape tells that; the axis that its product sums over does.

    Args:
        model: For its layers.
        checkpoint: With the model's names.
    """
    if checkpoint.format != "onnx":
        return checkpoint
    linear = {
        f"{name}.weight" if name else "weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
    }
    tensors = [
        _transposed(tensor)
        if tensor.name in linear and tensor.axis == 0 and len(tensor.shape) == 2
        else tensor
        for tensor in checkpoint.tensors
    ]
    return replace(checkpoint, tensors=tensors)


def _transposed(tensor: NamedTensor) -> NamedTensor:
    return replace(
        tensor,
        shape=tensor.shape[::-1],
        read=lambda: np.ascontiguousarray(tensor.read().T),
        axis=1,
    )


def _load_renamed(
    wanted: Sequence[str], checkpoint: Checkpoint, load: Load, failed: InputError
) -> Places:
    """Load by the first other names that fit, or raise what was at fault."""
    kept = [t for t in checkpoint.tensors if t.name not in COUNTERS - {*wanted}]
    checkpoint = replace(checkpoint, tensors=kept)
    names = [tensor.name for tensor in kept]
    best = _fitting(names, wanted)
    said, prefix = failed.message, shared_prefix(names)
    if prefix and not best:
        said += f"; all its names begin with {prefix!r}, without which they do not fit"
    for note, renamed in _renamings(names, wanted):
        fitting = _fitting(renamed, wanted)
        if not fitting or len({*renamed}) < len(names):
            continue  # not worth reading the file for
        try:
            places = load(_renamed(checkpoint, renamed))
        except InputError as error:
            if fitting > best:
                best, said = fitting, f"{note}: {error.message}"
            continue
        logger.warning("%s: %s", checkpoint.path, note)
        old = dict(zip(renamed, names, strict=True))
        return {old[new]: place for new, place in places.items()}
    raise InputError(said, file=failed.file, tensor=failed.tensor) from None


def _fitting(names: Sequence[str], wanted: Sequence[str]) -> int:
    """How many names are of the model, also of what is below its first module."""
    known = {*wanted, *(name.partition(".")[2] for name in wanted)}
    return len(known & {*names})


def _renamed(checkpoint: Checkpoint, names: Sequence[str]) -> Checkpoint:
    pairs = zip(checkpoint.tensors, names, strict=True)
    tensors = [replace(tensor, name=name) for tensor, name in pairs]
    return replace(checkpoint, tensors=tensors)


def _renamings(
    names: Sequence[str], wanted: Sequence[str]
) -> Iterator[tuple[str, list[str]]]:
    """Other names for all tensors, and the words for each."""
    for without, plain in _shortened(names):
        if without:
            yield f"read without {without!r} in its names", plain
        more, inner = "", list(wanted)
        while (first := shared_prefix(inner)) and more.count(".") < DEEPEST:
            more += first
            inner = [name.removeprefix(first) for name in inner]
            also = f"without {without!r} and " if without else ""
            words = f"read {also}with {more!r} before its names, as the model has it"
            yield words, [more + name for name in plain]


def _shortened(names: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
    """All names, then without wrappers, then without each prefix that all share."""
    yield "", list(names)
    plain, without = [_unwrapped(name) for name in names], ""
    if plain != list(names):
        parts = {part for name in names for part in name.split(".")}
        yield f"{min(WRAPPERS & parts)}.", plain
    while (first := shared_prefix(plain)) and without.count(".") < DEEPEST:
        without += first
        plain = [name.removeprefix(first) for name in plain]
        yield without, plain


def shared_prefix(names: Sequence[str]) -> str:
    """The first part of all names, with its dot; empty where they share none."""
    first = {name[: name.find(".") + 1] for name in names}
    return first.pop() if len(first) == 1 else ""


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def refuse_non_finite(
    model: nn.Module,
    source: object,
    of: Mapping[str, str] | None = None,
    mend: str = "start from other weights",
) -> None:
    """Refuse a model that is broken before its first step.

    Buffers may be infinite, as masks of attention are.

    Args:
        model: With its weights.
        source: Where they are from.
        of: The model's name of each tensor there, if it is a file.
        mend: What to do about it.

    Raises:
        NonFiniteError: With the first weight that is, and how many of its numbers.
    """
    names = {place: name for name, place in (of or {}).items()}
    for name, value in model.named_parameters():
        bad = int((~torch.isfinite(_wide(value))).sum())
        _refuse(bad, names.get(name, name), value, source, mend)
    for name, buffer in model.named_buffers():
        bad = int(torch.isnan(_wide(buffer)).sum())
        _refuse(bad, names.get(name, name), buffer, source, mend)


def _wide(value: Tensor) -> Tensor:
    """In a type that can be asked; of less than two bytes some cannot."""
    narrow = value.is_floating_point() and value.dtype.itemsize < 2
    return value.detach().float() if narrow else value.detach()


def _refuse(count: int, name: str, value: Tensor, source: object, mend: str) -> None:
    if count:
        raise NonFiniteError(
            f"{count} of its {value.numel()} numbers are NaN or infinite at step 0, "
            f"before anything is trained; {mend}",
            file=source,
            tensor=name,
        )
