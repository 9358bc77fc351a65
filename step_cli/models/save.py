"""The ``model/`` directory of a run: final weights, their plan, what built the model.

A model of transformers is saved as its library saves it, so that ``from_pretrained``
loads it without step-cli; of any other, ``model.json`` names where it came from.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from step_cli.errors import OutputError
from step_cli.formats.files.staged import staged
from step_cli.formats.huggingface.directory import copy_tokenizer
from step_cli.formats.huggingface.model import is_transformers
from step_cli.formats.huggingface.saved_plan import stored_plan, write_plan
from step_cli.formats.plan import KEY as PLAN_KEY
from step_cli.formats.plan import plan_json
from step_cli.formats.pytorch.arrays import to_array
from step_cli.formats.quiet import quiet
from step_cli.formats.safetensors.writer import save_safetensors
from step_cli.models.source import ModelSource, write_source
from step_cli.nm.pattern import Plan


def save_model(
    directory: Path,
    model: nn.Module,
    plan: Plan | None,
    source: ModelSource,
    tokenizers: Iterable[Path] = (),
    state: Mapping[str, Tensor] | None = None,
) -> None:
    """Write the model, complete or not at all.

    Args:
        directory: Becomes ``model/`` of the run.
        model: With its final weights.
        plan: Of its sparse weights, or None for a dense model.
        source: What built it.
        tokenizers: Hugging Face directories whose tokenizer goes with it.
        state: Its ``state_dict``, where ``model`` holds but a share of it.
    """
    state = model.state_dict() if state is None else state
    with staged(directory, force=True, directory=True) as staging:
        for path in tokenizers:
            copy_tokenizer(path, staging)
        if is_transformers(model):
            _save_transformers(staging, model, state, plan)
            return
        arrays = {name: to_array(value) for name, value in state.items()}
        metadata = {"format": "pt"}
        if plan:
            metadata[PLAN_KEY] = plan_json(plan)
        save_safetensors(staging / "model.safetensors", arrays, metadata)
        write_source(staging, source)


def _save_transformers(
    directory: Path, model: Any, state: Mapping[str, Tensor], plan: Plan | None
) -> None:
    files = _save_pretrained(directory, model, state)
    if not plan:
        return
    stored = stored_plan(directory, model, plan)
    if stored is None:
        # The plan names tensors in one piece; transformers reads both forms.
        for file in files:
            file.unlink()
        _save_pretrained(directory, model, state, save_original_format=False)
        stored = plan
    write_plan(directory, stored)


def _save_pretrained(
    directory: Path, model: Any, state: Mapping[str, Tensor], **options: bool
) -> list[Path]:
    """Have transformers save a model; returns the files of its weights."""
    try:
        with quiet():
            model.save_pretrained(directory, state_dict=dict(state), **options)
    except SafetensorError as error:
        raise OutputError(str(error).splitlines()[0], file=directory) from None
    return sorted(directory.glob("*.safetensors"))
