"""step-cli: make a model N:M sparse, with STEP or other methods, and check that it is.

Each name is imported when it is first used, so that ``import step_cli`` stays fast and
loads neither torch nor onnx.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from step_cli.commands.export.run import export as export
    from step_cli.commands.prune.run import prune as prune
    from step_cli.commands.verify.run import verify as verify
    from step_cli.errors import StepError as StepError
    from step_cli.formats.compressed.load import load_compressed as load_compressed
    from step_cli.integrations.huggingface import (
        HuggingFaceCallback as HuggingFaceCallback,
    )
    from step_cli.integrations.lightning import LightningCallback as LightningCallback
    from step_cli.integrations.semi_structured import (
        to_semi_structured as to_semi_structured,
    )
    from step_cli.optim.mask import nm_mask as nm_mask
    from step_cli.optim.require_sparse import require_sparse as require_sparse
    from step_cli.recipes.sparse_adamw import sparse as sparse
    from step_cli.recipes.sparse_adamw import sparse_adamw as sparse_adamw

_HOME = {
    "HuggingFaceCallback": "step_cli.integrations.huggingface",
    "LightningCallback": "step_cli.integrations.lightning",
    "StepError": "step_cli.errors",
    "export": "step_cli.commands.export.run",
    "load_compressed": "step_cli.formats.compressed.load",
    "nm_mask": "step_cli.optim.mask",
    "prune": "step_cli.commands.prune.run",
    "require_sparse": "step_cli.optim.require_sparse",
    "sparse": "step_cli.recipes.sparse_adamw",
    "sparse_adamw": "step_cli.recipes.sparse_adamw",
    "to_semi_structured": "step_cli.integrations.semi_structured",
    "verify": "step_cli.commands.verify.run",
}

__all__ = [*_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)
