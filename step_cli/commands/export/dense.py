"""`export --to dense`: plain weights again, as a file or a Hugging Face directory."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (NumPy learns bfloat16 and fp8 from it)
import numpy as np

from step_cli.commands.export.compressed import read_back
from step_cli.commands.export.source import size_bytes
from step_cli.commands.select import choose
from step_cli.commands.verify.counted import count_layers
from step_cli.config.commands import ExportConfig
from step_cli.errors import InputError, few
from step_cli.formats.checkpoint import Checkpoint, NamedTensor
from step_cli.formats.files.staged import staged
from step_cli.formats.huggingface.directory import find_weights
from step_cli.formats.huggingface.model_config import read_config
from step_cli.formats.huggingface.rewriter import copy_tree
from step_cli.formats.huggingface.rewriter import size_bytes as directory_bytes
from step_cli.formats.huggingface.sparsity_config import remove_sparsity_config
from step_cli.formats.huggingface.weight_names import weights_name
from step_cli.formats.open import open_checkpoint
from step_cli.formats.plan import FILE as PLAN_FILE
from step_cli.formats.plan import KEY as PLAN_KEY
from step_cli.formats.plan import digests, plan_json
from step_cli.formats.safetensors.writer import TensorToSave, save_safetensors
from step_cli.nm.pattern import Plan
from step_cli.render.status_line import working_on

log = logging.getLogger(__name__)
CONFIG = "config.json"


@dataclass(frozen=True)
class Dense:
    """What was written: sizes in bytes, and how many -0.0 were +0.0 in the input."""

    size_bytes: int
    dense_bytes: int
    negative_zeros: int | None
    notes: list[str]


def to_dense(config: ExportConfig) -> Dense:
    """Write a checkpoint as plain safetensors.

    Raises:
        InputError: It is plain already, and no old config.json beside it is to be
            cleared of its sparsity_config.
    """
    with working_on(f"reading {config.checkpoint}"):
        checkpoint = open_checkpoint(config.checkpoint)
    document, left_out = _config_of(checkpoint)
    if not checkpoint.compressed and not left_out:
        raise InputError(
            f"not written by export --to compressed, but {checkpoint.format}",
            file=config.checkpoint,
        )
    if config.to_directory:
        return _to_directory(config, checkpoint, document, left_out)
    size = _size_of(checkpoint)
    inputs = [config.checkpoint, *checkpoint.files]
    with staged(config.out, force=config.force, inputs=inputs, size_bytes=size) as path:
        metadata = dict(checkpoint.metadata)
        if checkpoint.plan:
            metadata[PLAN_KEY] = plan_json(checkpoint.plan)
        output = _save(path, checkpoint, metadata)
    notes = []
    if left_out:
        notes = [
            f"{CONFIG} was not copied, and none with its {few(left_out)} may stand "
            "beside these weights; an OUT without .safetensors is written as a "
            "directory, with the rest of that file"
        ]
    return Dense(output, size, checkpoint.negative_zeros, notes)


def _to_directory(
    config: ExportConfig,
    checkpoint: Checkpoint,
    document: Mapping[str, Any],
    left_out: list[str],
) -> Dense:
    """Write the directory anew: plain weights in one file, and all that is beside them.

    Raises:
        InputError: The checkpoint is no Hugging Face directory.
    """
    if checkpoint.format != "huggingface":
        raise InputError(
            f"is no Hugging Face directory, but {checkpoint.format}: name a "
            ".safetensors file as OUT",
            file=config.checkpoint,
        )
    source, size = config.checkpoint, _size_of(checkpoint)
    plan = checkpoint.plan or _plan_by_count(config, checkpoint)
    found = weights_name(find_weights(source).found)
    assert found is not None
    weights = {path.name for path in checkpoint.files}
    replaced = {PLAN_FILE, found.name, *weights, *([CONFIG] if left_out else [])}
    needed = size + directory_bytes(source)
    with staged(
        config.out,
        force=config.force,
        inputs=[source, *checkpoint.files],
        directory=True,
        size_bytes=needed,
    ) as folder:
        copy_tree(source, source, folder, without=replaced)
        stem = "diffusion_pytorch_model" if "diffusion" in found.name else "model"
        variant = f".{found.variant}" if found.variant else ""
        path = folder / f"{stem}{variant}.safetensors"
        metadata = {k: v for k, v in checkpoint.metadata.items() if k != PLAN_KEY}
        output = _save(path, checkpoint, metadata)
        if plan:
            text = plan_json(plan, indent=2, files=digests([path]))
            (folder / PLAN_FILE).write_text(text + "\n", "utf-8")
        if left_out:
            (folder / CONFIG).write_text(_text_of(document, source), "utf-8")
    notes = [f"{CONFIG}: left out {few(left_out)}"] if left_out else []
    return Dense(output, size, checkpoint.negative_zeros, notes)


def _config_of(checkpoint: Checkpoint) -> tuple[dict[str, Any], list[str]]:
    """The config.json of a directory, and what was taken out of it."""
    if checkpoint.format != "huggingface":
        return {}, []
    document = read_config(checkpoint.path)
    return document, remove_sparsity_config(document)


def _text_of(document: Mapping[str, Any], source: Path) -> str:
    try:
        return json.dumps(document, indent=2) + "\n"
    except RecursionError:
        raise InputError("is nested too deep", file=source / CONFIG) from None


def _plan_by_count(config: ExportConfig, checkpoint: Checkpoint) -> Plan | None:
    """2:4 for all that the sparsity_config did not leave dense, if it holds there.

    The new directory has no sparsity_config any more that says what to leave out.
    """
    layers = choose(config, checkpoint, None).layers
    counted = count_layers(layers)
    if not counted or not all(layer.ok for layer in counted):
        return None
    return {layer.tensor.name: layer.spec for layer in layers}


def _size_of(checkpoint: Checkpoint) -> int:
    return sum(size_bytes(tensor) for tensor in checkpoint.tensors)


def _save(path: Path, checkpoint: Checkpoint, metadata: Mapping[str, str]) -> int:
    """Write all tensors, read them back, and tell the size of the file in bytes."""
    tensors = {tensor.name: _to_save(tensor) for tensor in checkpoint.tensors}
    # transformers refuses a file without a format in its metadata.
    with working_on(f"writing {path.name}"):
        save_safetensors(path, tensors, {"format": "pt", **metadata})
    read_back(path, checkpoint.tensors)
    return path.stat().st_size


def _to_save(tensor: NamedTensor) -> TensorToSave:
    return TensorToSave(np.dtype(tensor.dtype), tensor.shape, lambda: [tensor.read()])
