"""Swap the Linear weights of a loaded model for semi-structured tensors of torch."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from typing_extensions import override

from step_cli.errors import UsageError, few, nearest
from step_cli.formats.pytorch.semi_structured import (
    StaysPlainError,
    backend_of,
    check_kind,
    is_semi_structured,
    semi_structured,
)
from step_cli.nm.pattern import NMPattern
from step_cli.nm.selection import matches
from step_cli.optim.mask import count_violations

TWO_FOUR = NMPattern(2, 4)
CHUNK = 1 << 24  # elements of a weight that are counted at a time


@dataclass(frozen=True)
class SwappedWeight:
    """A weight that is semi-structured now.

    Attributes:
        name: Of the parameter.
        shape: ``[out, in]``, of the dense weight.
        dtype: ``float16`` or ``bfloat16``.
        backend: ``cusparselt`` or ``cutlass``: what multiplies by it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    backend: str


@dataclass(frozen=True)
class KeptWeight:
    """A weight that is the plain tensor it was, and why."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    reason: str


@dataclass(frozen=True)
class SwapReport:
    """What became of each parameter with two axes or more; `print` it."""

    swapped: tuple[SwappedWeight, ...]
    kept: tuple[KeptWeight, ...]

    @override
    def __str__(self) -> str:
        total = len(self.swapped) + len(self.kept)
        backends = Counter(weight.backend for weight in self.swapped)
        by = f", by {' and '.join(sorted(backends))}" if backends else ""
        lines = [f"{len(self.swapped)} of {total} weights swapped{by}"]
        for reason, count in Counter(w.reason for w in self.kept).most_common():
            names = [w.name for w in self.kept if w.reason == reason]
            lines.append(f"{count} kept, {reason}: {few(names)}")
        return "\n".join(lines)


@torch.no_grad()
def to_semi_structured(
    model: nn.Module, *, exclude: str | Sequence[str] = ()
) -> SwapReport:
    """Have the sparse tensor cores of a GPU multiply by the 2:4 weights of a model.

    Every weight of a ``torch.nn.Linear`` that is 2:4 along its inputs, in float16 or
    bfloat16, on an Ampere or later NVIDIA GPU, with both sizes multiples of 16, is
    replaced by a semi-structured tensor of torch: cuSPARSELt's, or CUTLASS's (8.x GPUs)
    where torch has no cuSPARSELt. Each is tried in a product first. All others stay as
    they are. The model is changed in place, for inference: swapped weights need no
    gradient. Do it last: such a model can be neither saved, cast nor moved.

    Args:
        model: With its weights, on the device and in the type that it is to run in.
        exclude: Globs of parameter names that stay as they are, such as ``lm_head.*``.

    Returns:
        Which weights were swapped, and why the others were not.

    Raises:
        UsageError: A glob matches no parameter.
    """
    globs = [exclude] if isinstance(exclude, str) else list(exclude)
    _check_globs(globs, model)
    swapped, kept = [], []
    for name, weight, owners in _weights(model):
        shape, dtype = tuple(weight.shape), str(weight.dtype).removeprefix("torch.")
        try:
            if any(matches(name, glob) for glob in globs):
                raise StaysPlainError("excluded")
            layer = _linear(weight, owners)
            converted = _converted(weight, layer.bias)
        except StaysPlainError as reason:
            kept.append(KeptWeight(name, shape, dtype, str(reason)))
            continue
        layer.weight = nn.Parameter(converted, requires_grad=False)
        swapped.append(SwappedWeight(name, shape, dtype, backend_of(converted)))
    return SwapReport(tuple(swapped), tuple(kept))


def _check_globs(globs: Sequence[str], model: nn.Module) -> None:
    names = [name for name, _ in model.named_parameters(remove_duplicate=False)]
    for glob in globs:
        if not any(matches(name, glob) for name in names):
            raise UsageError(
                f"exclude: no parameter matches {glob!r}{nearest(glob, names, 3)}"
            )


# The module that holds a weight, under which name, and the module above.
Owner = tuple[nn.Module, str, nn.Module | None]


def _weights(model: nn.Module) -> Iterator[tuple[str, nn.Parameter, list[Owner]]]:
    """Each parameter with two axes or more, under its first name; one is held at once.

    Lists modules, not parameters: those are let go of as they are replaced.
    """
    modules = dict(model.named_modules())
    owners: dict[int, list[Owner]] = {}
    first: dict[str, tuple[nn.Module, str]] = {}
    for name, module in modules.items():
        above = modules[name.rpartition(".")[0]] if name else None
        for own, parameter in module._parameters.items():
            if parameter is None or parameter.dim() < 2:
                continue
            if id(parameter) not in owners:
                first[f"{name}.{own}" if name else own] = (module, own)
            owners.setdefault(id(parameter), []).append((module, own, above))
    for name, (module, own) in first.items():
        parameter = module._parameters[own]
        assert parameter is not None
        yield name, parameter, owners[id(parameter)]


def _linear(weight: nn.Parameter, owners: Sequence[Owner]) -> nn.Linear:
    """The layer whose weight it is, if that layer alone multiplies by it.

    Raises:
        StaysPlainError: Something else may read the weight, as a plain tensor.
    """
    module, own, above = owners[0]
    if len(owners) > 1:
        kinds = " and ".join(type(one).__name__ for one, _, _ in owners)
        raise StaysPlainError(f"shared by several modules ({kinds})")
    # A subclass may use its weight in other ways, as those of adapters do.
    if type(module) is not nn.Linear or own != "weight":
        raise StaysPlainError(f"of {type(module).__name__}, not the weight of a Linear")
    if isinstance(above, nn.TransformerEncoderLayer):
        # Its fast path hands the weights of its layers to one kernel.
        raise StaysPlainError("read by nn.TransformerEncoderLayer itself")
    if "forward" in vars(module):
        raise StaysPlainError("the forward of its layer was replaced")
    if is_semi_structured(weight):
        raise StaysPlainError("semi-structured already")
    if type(weight) is not nn.Parameter:
        raise StaysPlainError(f"a {type(weight).__name__}, not a plain tensor")
    return module


def _converted(weight: nn.Parameter, bias: Tensor | None) -> Tensor:
    """The weight in the order of the hardware, if it is 2:4.

    Raises:
        StaysPlainError: It is not, or has no sparse kernel here.
    """
    check_kind(weight)
    if weight.is_meta:
        raise StaysPlainError("on meta: not loaded yet")
    rows = max(1, CHUNK // weight.shape[1])
    for start in range(0, len(weight), rows):
        if count_violations(weight[start : start + rows], TWO_FOUR, 1):
            raise StaysPlainError("not 2:4 along its inputs")
    return semi_structured(weight.detach(), bias)
