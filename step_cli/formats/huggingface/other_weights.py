"""Weights that a directory holds under names that are not read: what they are, by name.

No file is opened. Two questions are answered: what a directory without weights of ours
has instead, and which further files of one that is pruned would stay dense.
"""

import os
import re
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from step_cli.errors import few
from step_cli.formats.huggingface.weight_names import (
    SHARD,
    WEIGHTS,
    weights_name,
    weights_names,
)

MOST_FILES = 10_000  # looked at, of a directory and of those in it

THE_FILE = "name the file itself"
# What a file is called, what it is, and what to do. The first match counts.
NOT_WEIGHTS = re.compile(
    r"(optimizer|optim|scheduler|scaler|random_states|rng_state|training_args|sampler)"
    r".*|.*_states?_rng.*",
    re.IGNORECASE,
)
ADAPTER = re.compile(
    r"(adapter_model|pytorch_adapter|pytorch_lora_weights|learned_embeds)"
    r".*\.(safetensors|bin|pt)"
)
FORMATS = (
    (
        r"consolidated.*\.(safetensors|pth|pt)",
        f"the original format of Mistral or Llama: {THE_FILE}",
    ),
    (
        r"rank\d+\.(safetensors|engine)",
        f"TensorRT-LLM, one file for each GPU: {THE_FILE}",
    ),
    (
        r".*mp_rank_\d+.*\.pt|layer_\d+-model.*\.pt",
        "a DeepSpeed checkpoint: turn it into one file with its zero_to_fp32.py",
    ),
    (
        r".*\.distcp",
        "a torch distributed checkpoint: convert it first, if you trust it: "
        "python -m torch.distributed.checkpoint.format_utils dcp_to_torch DIR FILE.pt",
    ),
    (
        r"openvino_model.*\.bin",
        "OpenVINO: use the weights that it was made from",
    ),
    (r".*\.onnx", f"ONNX: {THE_FILE}"),
    (r".*\.gguf", "GGUF: use the safetensors that it was made from"),
    (
        r".*\.(h5|keras|tflite)|saved_model\.pb|.*\.ckpt\.data-\d+-of-\d+",
        "of TensorFlow: save the model as safetensors first",
    ),
    (r".*\.msgpack", "of Flax: save the model as safetensors first"),
    (r".*\.(npz|mlmodel)|weight\.bin", "of another library: save it as safetensors"),
    (r".*\.nemo", "an archive of NeMo: unpack it and name the file in it"),
    (r".*\.(engine|plan|trt)", "a TensorRT engine: use the weights it was made from"),
    (r".*\.(safetensors|pt|pth|pth\.tar|th|ckpt|bin)", THE_FILE),
)
_FORMATS = tuple((re.compile(name, re.IGNORECASE), words) for name, words in FORMATS)
_TRAINING = re.compile(r"checkpoint-(\d+)")


def what_is_there(directory: Path) -> str:
    """Say why a directory has no weights to read, and what it has under other names."""
    files = list(islice(_files(directory, depth=2), MOST_FILES))
    found = _folders(directory, files) + _by_kind(directory, files)
    if not found:
        return f"no weights in it; looked for {' '.join(WEIGHTS)}"
    return f"no weights under the names that are looked for, but {'; '.join(found)}"


def others_with_weights(directory: Path, read: set[Path]) -> list[str]:
    """Files below a directory that hold weights besides those that are read.

    Adapters are left out, as they hold no weights of the model itself.

    Args:
        directory: Whose files.
        read: The files that are read.
    """
    return sorted(
        str(path.relative_to(directory))
        for path in _files(directory, depth=None)
        if path not in read and _format_of(path.name) is not None
    )


def _files(directory: Path, depth: int | None) -> Iterator[Path]:
    """The files of a directory and those below it; links to directories are passed."""
    try:
        with os.scandir(directory) as entries:
            found = [
                (Path(entry.path), entry.is_dir(), entry.is_symlink())
                for entry in entries
            ]
    except OSError:  # not ours to read
        return
    yield from (path for path, is_folder, _ in found if not is_folder)
    if depth is None or depth > 1:
        for path, is_folder, is_link in found:
            if is_folder and not is_link:
                yield from _files(path, None if depth is None else depth - 1)


def _format_of(name: str) -> str | None:
    """What a file of weights is, and what to do with it; None: it holds none."""
    if NOT_WEIGHTS.fullmatch(name) or ADAPTER.fullmatch(name):
        return None
    return next((words for kind, words in _FORMATS if kind.fullmatch(name)), None)


def _folders(directory: Path, files: list[Path]) -> list[str]:
    """Folders in it that can be named themselves, such as parts of a pipeline."""
    inside = {path.parent for path in files if path.parent != directory}
    names = sorted(folder.name for folder in inside if weights_names(folder))
    if not names:
        return []
    there = {path.name for path in files if path.parent == directory}
    if "model_index.json" in there:
        return [f"the parts of a diffusers pipeline: name one of {few(names)}"]
    steps = [name for name in names if _TRAINING.fullmatch(name)]
    if steps:
        steps.sort(key=lambda name: -int(name.rpartition("-")[2]))
        return [f"the checkpoints of a training run: name one of {few(steps)}"]
    what = "sentence-transformers modules" if "modules.json" in there else "folders"
    return [f"{what} with weights: name one of {few(names)}"]


def _is_index(name: str) -> bool:
    found = weights_name(name)
    return found is not None and found.is_index


def _by_kind(directory: Path, files: list[Path]) -> list[str]:
    """Files in it that hold weights, those of one kind together."""
    kinds: dict[str, list[str]] = {}
    indexed = {path.parent for path in files if _is_index(path.name)}
    for path in sorted(files):
        nested = path.parent != directory
        shard = SHARD.fullmatch(path.name)
        listed = shard is not None and path.parent in indexed
        if nested and (listed or weights_name(path.name)):
            continue  # its folder was named
        words = _format_of(path.name)
        if ADAPTER.fullmatch(path.name):
            words = (
                "an adapter, not a model: merge it into its model first "
                "(PEFT: merge_and_unload), then save_pretrained"
            )
        elif shard and words == THE_FILE:
            words = (
                f"shards without their index: fetch {shard[1]}.{shard[4]}.index.json "
                f"too, or {THE_FILE}"
            )
        if words is not None:
            name = str(path.relative_to(directory))
            kinds.setdefault(words, []).append(name)
    return [f"{few(names)} ({words})" for words, names in kinds.items()]
