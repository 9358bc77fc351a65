"""The trtexec command that builds the same engine elsewhere.

Every flag exists in the 10.x and the 11.x dialect; `--stronglyTyped` is needed on 10
and does nothing on 11.
"""

import shlex
from collections.abc import Sequence
from pathlib import Path

from step_cli.formats.tensorrt.profiles import Profile


def trtexec_line(
    onnx_file: Path,
    plan_file: Path,
    *,
    profiles: Sequence[Profile] = (),
    workspace_mib: int | None = None,
) -> str:
    """One shell line for a machine with a GPU and TensorRT 10 or 11."""
    words = [
        "trtexec",
        f"--onnx={onnx_file}",
        f"--saveEngine={plan_file}",
        "--sparsity=enable",
        "--stronglyTyped",
        "--verbose",
        "--skipInference",
        "--profilingVerbosity=detailed",
        f"--exportLayerInfo={plan_file}.layers.json",
    ]
    for option, index in (("min", 0), ("opt", 1), ("max", 2)):
        shapes = [
            f"{profile.name}:{'x'.join(map(str, profile.shapes[index]))}"
            for profile in profiles
        ]
        if shapes:
            words.append(f"--{option}Shapes={','.join(shapes)}")
    if workspace_mib is not None:
        words.append(f"--memPoolSize=workspace:{workspace_mib}")
    return shlex.join(words)
