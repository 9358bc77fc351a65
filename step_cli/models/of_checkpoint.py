"""Which model a checkpoint is of; without torch, as an ONNX file needs no model."""

from step_cli.config.document import absolute_spec
from step_cli.errors import UsageError
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.huggingface.model import is_hugging_face
from step_cli.formats.model_json import ModelSource, read_source


def model_source(spec: str | None, checkpoint: Checkpoint) -> ModelSource:
    """What builds the model of a checkpoint: the user's, else what is recorded in it.

    Args:
        spec: The user's --model, if given.
        checkpoint: Whose model is to be built.

    Raises:
        UsageError: There is neither, or the checkpoint names code of the user.
    """
    home = checkpoint.path / "model" if checkpoint.format == "run" else checkpoint.path
    recorded = read_source(home)
    if spec is not None:
        return _with_options(spec, recorded)
    if is_hugging_face(home):
        return ModelSource(str(home))
    if recorded is None:
        raise UsageError(
            "the checkpoint does not say which model it is of; pass --model "
            "sample:NAME, a Hugging Face directory, or net.py:build",
            file=checkpoint.path,
        )
    if not recorded.spec.startswith("sample:"):
        raise UsageError(
            f"the run's model is code ({recorded.spec}), which is never run by itself; "
            "pass --model net.py:build",
            file=checkpoint.path,
        )
    return recorded


def _with_options(spec: str, recorded: ModelSource | None) -> ModelSource:
    """The options of training belong to the model that was trained, and to no other."""
    if recorded is not None and absolute_spec(spec) == recorded.spec:
        return recorded
    return ModelSource(spec)
