"""The plan beside a model that transformers has just saved."""

from pathlib import Path
from typing import TYPE_CHECKING

from step_cli.formats.huggingface.load import places_of
from step_cli.formats.open import open_checkpoint
from step_cli.formats.plan import FILE, digests, plan_json
from step_cli.nm.pattern import Plan

if TYPE_CHECKING:
    from torch import nn


def stored_plan(directory: Path, model: "nn.Module", plan: Plan) -> Plan | None:
    """The plan under the names that a saved model has in its files.

    Args:
        directory: Where the model was saved.
        model: It, unchanged since.
        plan: By its own names.

    Returns:
        None where the files hold a planned weight in pieces, as transformers saves
        some models in the form of their first release.
    """
    opened = open_checkpoint(directory)
    saved = {ours: theirs for theirs, ours in places_of(model, opened).items()}
    if not saved.keys() >= plan.keys():
        return None
    return {saved[name]: layer for name, layer in plan.items()}


def write_plan(directory: Path, plan: Plan) -> None:
    """Write a plan beside the safetensors files of a directory, with their digests."""
    files = digests(sorted(directory.glob("*.safetensors")))
    text = plan_json(plan, indent=2, files=files)
    (directory / FILE).write_text(text + "\n", encoding="utf-8")
