"""What a file is, by its first bytes; its suffix may be another's."""

import re
from pathlib import Path

from step_cli.errors import InputError, UsageError
from step_cli.formats.files.mapped_file import MappedFile

HEAD = 1024  # bytes looked at

SUFFIXES = {
    ".safetensors": "safetensors",
    ".pt": "torch",
    ".pth": "torch",
    ".bin": "torch",
    ".ckpt": "torch",
    ".th": "torch",
    ".pth.tar": "torch",
    ".onnx": "onnx",
}
# Loading one of these would run code from the file.
PROGRAMS = {
    ".plan": "a TensorRT engine",
    ".engine": "a TensorRT engine",
    ".trt": "a TensorRT engine",
    ".keras": "a Keras model",
    ".h5": "an HDF5 model",
    ".pkl": "a pickle",
    ".pickle": "a pickle",
    ".joblib": "a joblib pickle",
    ".npy": "a NumPy array",
    ".npz": "a NumPy archive",
    ".gguf": "a GGUF file",
}
ENGINES = "engines are programs and are not loaded"
DISTRIBUTED = (
    "a torch distributed checkpoint: its metadata is a pickle; convert it first, if "
    "you trust it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch "
    "DIR FILE.pt"
)


def format_of(file: MappedFile) -> str:
    """The format of a checkpoint file: safetensors, torch or onnx.

    Raises:
        InputError: Suffix and content disagree, or the content is no checkpoint.
    """
    head = file.head(HEAD)
    content = content_of(head, file.size)
    if content == "tar":
        raise InputError(_tar(head), file=file.path)
    if content in REFUSED:
        raise InputError(REFUSED[content], file=file.path)
    named = format_named(file.path)
    if named is None:
        raise InputError(_unknown(file.path, content), file=file.path)
    if content not in (None, named):
        raise InputError(
            f"content is {content}, name says {suffix_of(file.path)}, rename it",
            file=file.path,
        )
    return named


def suffix_of(path: Path) -> str:
    """How the name ends, in small letters: ``.pt``, ``.pth.tar``."""
    name = path.name.lower()
    return ".pth.tar" if name.endswith(".pth.tar") else path.suffix.lower()


def format_named(path: Path) -> str | None:
    """The format that the name stands for; None: no checkpoint file."""
    return SUFFIXES.get(suffix_of(path))


def refuse_key(key: str | None, path: Path) -> None:
    """Refuse the user's key to a state dict for what is no torch file.

    Raises:
        UsageError: There is a key.
    """
    if key is not None:
        raise UsageError("--key applies to torch files only", file=path)


def _tar(head: bytes) -> str:
    """What to do with a tar archive; the first hundred bytes name its first file."""
    first = head[:100].partition(b"\0")[0].decode(errors="replace")
    if first in ("sys_info", "pickle", "storages", "tensors"):
        return (
            "a tar archive as the first versions of torch wrote it, with pickles in "
            "it; load it with such a torch, if you trust it, and save "
            "model.state_dict() with a newer one"
        )
    inside = "" if "PaxHeader" in first else f" ({first!r:.80}, ...)"
    return f"a tar archive of files{inside}; unpack it and name the file of weights"


def _unknown(path: Path, content: str | None) -> str:
    suffix = suffix_of(path)
    if suffix == ".distcp" or path.name == ".metadata":
        return DISTRIBUTED
    if suffix in (".plan", ".engine", ".trt"):
        return ENGINES
    if suffix in PROGRAMS:
        return (
            f"{PROGRAMS[suffix]} is not a checkpoint; save its weights as safetensors"
        )
    if content is not None:
        return f"content is {content}, name says {suffix or 'nothing'}, rename it"
    known = " ".join(SUFFIXES)
    return f"not a checkpoint; known are {known} and directories of them"


REFUSED = {
    "git-lfs": "a git-lfs pointer, not the file itself; run git lfs pull",
    "HTML": "looks like HTML, an error page perhaps; download it again",
    "JSON": "looks like JSON, an error page perhaps; download it again",
    "engine": ENGINES,
    "ELF": "a compiled program, not a checkpoint; programs are not loaded",
    "HDF5": "an HDF5 model, not a checkpoint; save its weights as safetensors",
    "GGUF": "a GGUF file, not a checkpoint; use the safetensors it was made from",
    "NumPy": "a NumPy array, not a checkpoint; save a safetensors file",
    "gzip": "content is compressed with gzip, unpack it",
}

_STARTS = {
    b"version https://git-lfs": "git-lfs",
    b"PK\x03\x04": "torch",
    b"PK\x05\x06": "torch",
    b"ptrt": "engine",
    b"ftrt": "engine",
    b"\x7fELF": "ELF",
    b"\x89HDF": "HDF5",
    b"GGUF": "GGUF",
    b"\x93NUMPY": "NumPy",
    b"\x1f\x8b": "gzip",
}


def content_of(head: bytes, size: int) -> str | None:
    """Name what ``head`` starts, or None if nothing is recognised."""
    for start, kind in _STARTS.items():
        if head.startswith(start):
            return kind
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and length < 2**32:
        return "safetensors"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return "torch"  # a pickle: a torch file of before 1.6, or anything at all
    if head[257:262] == b"ustar":
        return "tar"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "HTML"
    if re.match(rb"[{\[]\s*[\"{\[\]}]", text):
        return "JSON"
    # An ONNX file is a protobuf: ir_version first, then a field of ModelProto.
    if re.match(rb"\x08[\x01-\x20][\x12\x1a\x22\x28\x32\x3a\x42\x72]", head):
        return "onnx"
    return None
