"""An ONNX file called as a PyTorch model is: tensors in, scores out.

ONNX Runtime computes on the CPU, as the file says: fp32, fp16, int8 or fp8. So whatever
measures or asks a model does the same with a graph.
"""

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from typing_extensions import override

from step_cli.errors import InputError, few, naming
from step_cli.formats.onnx.session import NodeArg, OrtSession
from step_cli.formats.onnx.widened import widened

logger = logging.getLogger(__name__)

TYPES = {
    "tensor(float)": torch.float32,
    "tensor(float16)": torch.float16,
    "tensor(double)": torch.float64,
    "tensor(int64)": torch.int64,
    "tensor(int32)": torch.int32,
    "tensor(int16)": torch.int16,
    "tensor(int8)": torch.int8,
    "tensor(uint8)": torch.uint8,
    "tensor(bool)": torch.bool,
}
BF16 = "tensor(bfloat16)"
# What models of transformers take where they are not given it: all tokens count, and
# all are of the first text.
FILLED = {"attention_mask": 1, "token_type_ids": 0}


class OnnxGraph(nn.Module):
    """The graph in an ONNX file, without parameters of its own.

    Attributes:
        batch: How many samples it takes at a time; None: any number.
        runtime: What computes, in words; they end with ``bf16 as fp32`` where it has no
            kernels for the graph as it is.

    Args:
        path: The file.

    Raises:
        InputError: ONNX Runtime refuses it, or its inputs differ in samples.
        ModuleNotFoundError: ONNX Runtime is not installed.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        with naming(file=path):
            self._session, is_wide = _session(path)
            self.runtime = self._session.runtime + (", bf16 as fp32" * is_wide)
            self._scores = _place_of_scores(self._session.outputs, path)
            self.batch = _batch(self._session.inputs)

    @override
    def forward(self, *given: Tensor, **named: Tensor) -> Tensor:
        """The scores, ``[n, ...]``, on the device of the inputs.

        Where the graph takes a fixed number of samples, they are given that many at a
        time; the last ones are filled up with copies of the last one, which changes no
        range of values, and what comes of the copies is dropped.

        Args:
            given: At most one input, the graph's first.
            named: Inputs by name, each ``[n, ...]``.

        Raises:
            InputError: The inputs are not those of the graph.
        """
        inputs = self._fitting(given, named)
        first = next(iter(inputs.values()))
        rows, device = len(first), (*given, *named.values())[0].device
        size = self.batch or rows
        parts = []
        for start in range(0, rows, size):
            chosen = torch.arange(start, start + size).clamp(max=rows - 1)
            scores = self._run({name: v[chosen] for name, v in inputs.items()})
            if scores.dim() == 0 or len(scores) != size:
                raise _misfit(f"it returns {list(scores.shape)} for {size} samples")
            parts.append(scores[: rows - start])
        return torch.cat(parts).to(device)

    def _run(self, inputs: Mapping[str, Tensor]) -> Tensor:
        feeds = {name: values.numpy() for name, values in inputs.items()}
        try:
            return torch.from_numpy(self._session.run(feeds)[self._scores])
        except InputError as error:
            raise _misfit(error.message) from None

    def _fitting(
        self, given: tuple[Tensor, ...], named: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """The inputs by the graph's names, in its types."""
        wanted = {taken.name: taken for taken in self._session.inputs}
        found = dict(named)
        if given:
            own = [name for name in wanted if name not in FILLED]
            found = {(own or [*wanted] or ["x"])[0]: given[0]}
        first = next(iter(found.values()))
        for name, value in FILLED.items():
            if name in wanted and name not in found:
                found[name] = torch.full_like(first, value)
        for names, said in (
            (found.keys() - wanted.keys(), "takes no {}, which the data give"),
            (wanted.keys() - found.keys(), "takes {}, which the data do not give"),
        ):
            if names:
                raise _misfit(f"it {said.format(', '.join(sorted(names)))}")
        return {name: _as_taken(found[name], taken) for name, taken in wanted.items()}


def _session(path: Path) -> tuple[OrtSession, bool]:
    """The file, and whether it had to be widened: then it is run from a copy."""
    options = OrtSession.options(threads=torch.get_num_threads())
    refused: InputError | None = None
    try:
        session = OrtSession(path, options=options)
        if all(each.type != BF16 for each in (*session.inputs, *session.output_args)):
            return session, False
    except InputError as error:
        refused = error
    copy = widened(path)
    if copy is None:
        assert refused is not None  # else an input or output is bf16
        raise refused
    return OrtSession(copy, options=options), True


def _place_of_scores(outputs: list[str], path: Path) -> int:
    """Which output scores the classes: ``logits``, else the first.

    A graph traced from a model of transformers has its outputs in their order there,
    scores first, under names of the tracer.
    """
    if "logits" in outputs:
        return outputs.index("logits")
    if len(outputs) > 1:
        logger.warning(
            "%s: of its outputs %s, none called logits, the first is taken for the "
            "scores", path, few(outputs),
        )  # fmt: skip
    return 0


def _batch(inputs: Iterable[NodeArg]) -> int | None:
    """The number of samples that all inputs fix."""
    sizes = {each.shape[0] for each in inputs if each.shape}
    fixed = sorted(size for size in sizes if isinstance(size, int))
    if len(fixed) > 1 or 0 in fixed:
        raise InputError(f"its inputs are of {fixed} samples: take one number")
    return fixed[0] if fixed else None


def _as_taken(values: Tensor, taken: NodeArg) -> Tensor:
    """An input in the graph's type, its sizes checked but for the number of samples."""
    dtype, sizes = TYPES.get(taken.type), taken.shape
    same = not sizes or (
        len(sizes) == values.dim()
        and all(
            size == own
            for size, own in zip(sizes[1:], values.shape[1:], strict=True)
            if isinstance(size, int)
        )
    )
    fits = dtype is not None and dtype.is_floating_point == values.is_floating_point()
    if same and fits:
        cast = values.cpu().to(dtype)
        if values.is_floating_point() or torch.equal(
            cast.to(values.dtype), values.cpu()
        ):
            return cast
    kind = str(values.dtype).removeprefix("torch.")
    raise _misfit(
        f"its input {taken.name} is {taken.type} of {_sizes(sizes)}, the data give "
        f"{kind} of {list(values.shape)}; export it again with the types and sizes of "
        "the data, or with names for sizes that vary"
    )


def _sizes(sizes: Iterable[object]) -> str:
    return f"[{', '.join(str(size or '?') for size in sizes)}]"


def _misfit(said: str) -> InputError:
    return InputError(f"the graph does not fit the data: {said}")
