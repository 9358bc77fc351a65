"""Load a compressed checkpoint into PyTorch, 2:4 tensors onto sparse tensor cores."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from step_cli.errors import InputError, MissingError
from step_cli.formats.compressed.codes import (
    CODE_TYPES,
    SCALE,
    dequantized,
    scales_of,
)
from step_cli.formats.open import open_checkpoint
from step_cli.nm.pattern import NMPattern, NMSpec

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TWO_FOUR = NMSpec(NMPattern(2, 4), 1)


def load_compressed(
    path: str | Path,
    device: "str | torch.device" = "cpu",
    *,
    dequantize: "torch.dtype | None" = None,
) -> "dict[str, Tensor]":
    """The state dict in a compressed checkpoint.

    int8 and fp8 codes are given as they are, beside their scales, as in the checkpoint
    that was compressed: what a runtime for quantized weights takes.

    On an Ampere or later GPU, 2:4 weights of Linear layers in fp16 or bf16 become
    ``torch.sparse`` semi-structured tensors where their size allows; all others, and
    everything elsewhere, are plain tensors. No dense file is written.

    Args:
        path: A file of ``export --to compressed``.
        device: Where the tensors go.
        dequantize: A floating type. Codes become the numbers they mean, in that type,
            as a model of plain layers takes them, and their scales and zero points are
            left out.

    Raises:
        InputError: The file is damaged, or not a compressed one.
        MissingError: torch is not installed.
    """
    try:
        import torch
    except ImportError:
        raise MissingError(
            "load_compressed needs torch: pip install 'step-cli[train]'"
        ) from None
    from step_cli.formats.pytorch.arrays import to_tensor
    from step_cli.formats.pytorch.semi_structured import (
        StaysPlainError,
        semi_structured,
    )

    checkpoint = open_checkpoint(Path(path))
    if not checkpoint.compressed:
        raise InputError("not written by export --to compressed", file=path)
    place = torch.device(device)
    plan = checkpoint.plan or {}
    stored = {tensor.name: tensor for tensor in checkpoint.tensors}
    scales = checkpoint.scales
    if scales is None:
        scales = scales_of(checkpoint.tensors, plan)
    meant = stored if dequantize is None else dequantized(stored, scales, plan)
    unknown = [n for n in meant if n + SCALE in meant and meant[n].dtype in CODE_TYPES]
    if dequantize is not None and unknown:
        raise InputError(
            f"its scale {unknown[0]}{SCALE} is not one number, nor one for each output "
            "or block: load the codes as they are, without dequantize",
            file=path,
            tensor=unknown[0],
        )
    state = {}
    for name, each in meant.items():
        tensor = to_tensor(each.read())
        if dequantize is not None and name in scales:
            tensor = tensor.to(dequantize)
        state[name] = tensor = tensor.to(place)
        if plan.get(name) == TWO_FOUR:
            with suppress(StaysPlainError):
                state[name] = semi_structured(tensor)
    return state
