"""The commands that build the same engine on another machine, to be copied."""

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from step_cli.config.commands import ExportConfig
from step_cli.formats.tensorrt.profiles import BOUNDS, Profile, parse_shapes

# Options that decide what the ONNX file holds; `--precision` goes beside them.
_OF_THE_GRAPH = (
    *("model", "input", "opset", "nm", "include", "exclude", "axis", "plan"),
    *("tolerance", "no_check"),
)
_OF_QUANTIZED = ("quantize", "calibration", "calibration_samples")


def trtexec(config: ExportConfig, profiles: Sequence[Profile] = ()) -> str:
    """The trtexec command, on the ONNX file of `export --to onnx`.

    Args:
        config: The options.
        profiles: Of the dynamic inputs; without them, by the options.
    """
    if not profiles:
        given = parse_shapes({o: getattr(config, o) for o in BOUNDS})
        profiles = [
            Profile(name, (given["min"][name], shape, given["max"][name]))
            for name, shape in given["opt"].items()
            if name in given["min"] and name in given["max"]
        ]
    return trtexec_line(
        _onnx_file(config),
        config.out,
        profiles=profiles,
        workspace_mib=config.workspace,
    )


def commands_to_build(
    config: ExportConfig, profiles: Sequence[Profile] = (), precision: str = "fp16"
) -> str:
    """All commands it takes: the ONNX file is made first, unless it is the input.

    Args:
        config: The options.
        profiles: As for `trtexec`.
        precision: Of the graph, unless the options decide it.
    """
    line, made = trtexec(config, profiles), _onnx_file(config)
    if made == config.checkpoint:
        return line
    words = ["step-cli", "export", str(config.checkpoint), str(made), "--to", "onnx"]
    quantized = () if config.quantize is None else _OF_QUANTIZED
    for name in (*_OF_THE_GRAPH, *quantized):
        words += _words("--" + name.replace("_", "-"), getattr(config, name))
    if config.quantize is None:
        words += ["--precision", config.precision or precision]
    return f"{shlex.join(words)}, then {line}"


def _words(option: str, value: Any) -> list[str]:
    """An option as typed, once for each of its values."""
    if value is None or value is False:
        return []
    if value is True:
        return [option]
    if isinstance(value, list):
        return [word for one in value for word in _words(option, one)]
    if isinstance(value, tuple):  # --axis GLOB=AXIS
        value = f"{value[0]}={value[1]}"
    return [option, str(value)]


def _onnx_file(config: ExportConfig) -> Path:
    """The ONNX file that trtexec is to read: the checkpoint, or one to be made."""
    given = config.checkpoint
    return given if given.suffix.lower() == ".onnx" else config.out.with_suffix(".onnx")


def trtexec_line(
    onnx_file: Path,
    plan_file: Path,
    *,
    profiles: Sequence[Profile] = (),
    workspace_mib: int | None = None,
) -> str:
    """One shell line for a machine with a GPU and TensorRT 10 or 11.

    Every flag exists in the 10.x and the 11.x dialect; `--stronglyTyped` is needed on
    10 and does nothing on 11.
    """
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
    for index, option in enumerate(BOUNDS):
        shapes = [
            f"{profile.name}:{'x'.join(map(str, profile.shapes[index]))}"
            for profile in profiles
        ]
        if shapes:
            words.append(f"--{option}Shapes={','.join(shapes)}")
    if workspace_mib is not None:
        words.append(f"--memPoolSize=workspace:{workspace_mib}")
    return shlex.join(words)
