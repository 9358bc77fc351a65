"""Why torch could not read a file, in words, and what to do about it."""

import re

from step_cli.formats.pytorch.state_dict import SAVE, Unfit

MOST = 300  # characters of a library's sentence
GATHER = (
    "is a part of a tensor that is spread over processes; gather the state dict "
    "before saving: torch.distributed.checkpoint.state_dict.get_model_state_dict "
    "with full_state_dict=True"
)
NO_TORCH_FILE = "is no torch checkpoint; save its weights as safetensors"
# By how the name of a class begins: what an object of it is, and what to do.
KINDS = {
    "torch.sparse.semi_structured.": "is a semi-structured tensor; call .to_dense() "
    "on each before saving",
    "torch.distributed.tensor": "is a DTensor; call .full_tensor() on each before "
    "saving",
    "torch.distributed._tensor": "is a DTensor; call .full_tensor() on each before "
    "saving",
    "torch.distributed._shard": GATHER,
    "torch.distributed.fsdp": GATHER,
    "torchao.": "is a quantized tensor of torchao; call .dequantize() on each before "
    "saving",
    "optimum.quanto.": "is a quantized tensor of quanto; call .dequantize() on each "
    "before saving",
    "bitsandbytes.": "is a quantized tensor of bitsandbytes; check the checkpoint it "
    "was made from",
    "torch.nested.": "is a nested tensor; call .unbind() on each before saving",
    "__torch__.": f"is TorchScript, a program; {SAVE} instead",
    "torch.jit.": f"is TorchScript, a program; {SAVE} instead",
    "sklearn.": NO_TORCH_FILE,
    "joblib.": NO_TORCH_FILE,
    "xgboost.": NO_TORCH_FILE,
    "lightgbm.": NO_TORCH_FILE,
    "pandas.": NO_TORCH_FILE,
}


def in_words(error: BaseException) -> str:
    """What went wrong, without the library's advice to load it unsafely."""
    # torch puts pages of advice around the cause.
    text = str(error).rpartition("WeightsUnpickler error: ")[2]
    if isinstance(error, Unfit):
        return text
    wanted = re.search(r"GLOBAL (\S+)", text)
    if wanted and "nsupported" in text:
        return _refused(wanted[1])
    if "torch.distributed.tensor" in text:
        return f"one of its tensors {KINDS['torch.distributed.tensor']}"
    if "torch.nested" in text:
        return f"one of its tensors {KINDS['torch.nested.']}"
    if isinstance(error, MemoryError) or "alloc" in text:
        return "needs more memory than 3 times its size and 2 GiB, refused"
    if isinstance(error, RecursionError):
        return "is nested too deep, refused"
    if isinstance(error, EOFError):
        return "truncated: its pickle ends early, get it again"
    if "Unsupported operand" in text:
        return (
            "its pickle is refused: not by torch.save, or not with its default "
            f"pickle_protocol; {SAVE} with torch.save"
        )
    if "Invalid magic number" in text:
        return f"a pickle that torch.save did not write; {SAVE} with torch.save"
    return (
        f"not a torch checkpoint of tensors alone ({type(error).__name__}: "
        f"{_first_sentence(text)}); {SAVE}"
    )


def _refused(name: str) -> str:
    """The name is that of a class or function which the pickle would use."""
    shown = name.strip("'\"`,;")[:120]
    for start, what in KINDS.items():
        if shown.startswith(start):
            return f"{shown} {what}"
    return f"wants to call {shown}, refused; {SAVE} instead, or a safetensors file"


def _first_sentence(text: str) -> str:
    """Whole, if it is not too long: numbers and file names have dots as well."""
    first = re.split(r"(?<=[.!?])\s+(?=[A-Z])|\n", text.strip(), maxsplit=1)[0]
    first = first.rstrip(". ")
    return first if len(first) <= MOST else f"{first[:MOST]}..."
