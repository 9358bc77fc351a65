"""What ``--version`` shows: the release and, when verbose, what it works with."""

import json
from importlib import metadata
from typing import Any

INSTALLED = (
    "torch",
    "numpy",
    "safetensors",
    "onnx",
    "onnxruntime",
    "onnxscript",
    "tensorrt",
    "tensorrt-rtx-cu13",
    "transformers",
)


def version(*, verbose: bool, as_json: bool) -> str:
    """The version; when verbose, the kernels and installed versions too.

    Versions are read from the metadata of packages: nothing is imported.

    Args:
        verbose: Whether to list more than the version of step-cli.
        as_json: Whether to return one JSON document; it always lists everything.
    """
    own = metadata.version("step-cli")
    if as_json:
        return json.dumps({"schema": "step-cli/version/1", "ok": True, **_all(own)})
    if not verbose:
        return f"step-cli {own}"
    found = _all(own)
    kernels = found["kernels"]
    packages = [
        f"{name} {number or 'not installed'}"
        for name, number in found["packages"].items()
    ]
    return "\n".join(
        [
            f"step-cli {own}",
            f"Python {found['python']}",
            found["platform"],
            f"kernels {kernels['instructions'] or 'numpy'}: {kernels['why']}",
            *packages,
        ]
    )


def _all(own: str) -> dict[str, Any]:
    """Everything that decides how step-cli works here, as ``--json`` has it."""
    from platform import platform, python_version

    from step_cli.nm import kernels

    return {
        "version": own,
        "python": python_version(),
        "platform": platform(),
        "kernels": {"instructions": kernels.instructions(), "why": kernels.why()},
        "packages": {name: _installed(name) for name in INSTALLED},
    }


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
