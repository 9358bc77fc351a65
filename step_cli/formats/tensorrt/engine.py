"""Build a TensorRT plan that may use sparse tactics, in a process of its own.

An engine is written, hashed and described, and never loaded: a plan is a program.
"""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from step_cli.errors import InputError
from step_cli.formats.child_process import ChildDiedError, ask
from step_cli.formats.files.temporary import temporary_directory
from step_cli.formats.tensorrt.api import TrtRuntime
from step_cli.formats.tensorrt.evidence import EngineLayer, parse_layers
from step_cli.formats.tensorrt.failures import crashed, explain
from step_cli.formats.tensorrt.profiles import Profile

log = logging.getLogger(__name__)

CHILD = "step_cli.formats.tensorrt.build"


@dataclass(frozen=True)
class EngineOptions:
    """How to build.

    Attributes:
        sparse: Permit sparse tactics; permission only, the library decides.
        profiles: Shapes of the dynamic inputs.
        compute_capabilities: Targets such as ``8.6``; empty: the library's default.
        workspace_mib: Scratch memory a layer may use, in MiB.
        timing_cache: File of kernel timings, read if it exists and replaced.
    """

    sparse: bool = True
    profiles: Sequence[Profile] = ()
    compute_capabilities: Sequence[str] = ()
    workspace_mib: int | None = None
    timing_cache: Path | None = None


@dataclass(frozen=True)
class EngineBuild:
    """A finished build.

    Attributes:
        log: All that the builder logged, as text.
        layers: From the engine inspector; empty where no GPU could open the engine.
        sha256: Of the plan file.
        size_bytes: Of the plan file.
        timing_cache: The new content of the timing cache, or None.
        warnings: What the user should know.
    """

    log: str
    layers: tuple[EngineLayer, ...]
    sha256: str
    size_bytes: int
    timing_cache: bytes | None
    warnings: tuple[str, ...]


def build_engine(
    runtime: TrtRuntime, onnx_file: Path, plan_file: Path, options: EngineOptions
) -> EngineBuild:
    """Write the plan of ``onnx_file`` to ``plan_file``.

    Raises:
        StepError: The build failed; the kind of error shows whose fault it is.
    """
    with temporary_directory("build") as desk:
        request = _request(runtime, onnx_file, plan_file, options, desk)
        try:
            child = ask(CHILD, request)
        except ChildDiedError as died:
            if not died.signal:
                raise RuntimeError(f"the build process failed: {died.stderr}") from None
            log.debug("build log:\n%s", _read(desk / "log") + died.stderr)
            raise crashed(died.signal, file=onnx_file) from None
        outcome, build_log = child.document, _read(desk / "log") + child.stderr
        if not outcome["ok"]:
            log.debug("build log:\n%s", build_log)
            # The library's own last record is the clearest, so it comes last.
            said = [*child.stderr.splitlines(), outcome["raised"], *outcome["records"]]
            raise explain(said, file=onnx_file)
        return _finished(plan_file, build_log, outcome, desk / "timings")


def _request(
    runtime: TrtRuntime,
    onnx_file: Path,
    plan_file: Path,
    options: EngineOptions,
    desk: Path,
) -> dict[str, Any]:
    cache = options.timing_cache if runtime.kind == "tensorrt" else None
    return {
        "module": runtime.module.__name__,
        "onnx": str(onnx_file.resolve()),
        "plan": str(plan_file.resolve()),
        "log": str(desk / "log"),
        "sparse": options.sparse,
        "profiles": [asdict(profile) for profile in options.profiles],
        "compute_capabilities": list(options.compute_capabilities),
        "workspace_mib": options.workspace_mib,
        "timing_cache": str(cache) if cache and cache.exists() else None,
        "new_timing_cache": str(desk / "timings") if cache else None,
        "inspect": runtime.kind == "tensorrt",
    }


def _finished(
    plan_file: Path, log: str, outcome: dict[str, Any], timings: Path
) -> EngineBuild:
    plan = plan_file.read_bytes()
    sha256 = hashlib.sha256(plan).hexdigest()
    if sha256 != outcome["sha256"]:
        raise InputError("its sha256 differs from the build", file=plan_file)
    layers: tuple[EngineLayer, ...] = ()
    if outcome.get("layers"):
        try:
            layers = tuple(parse_layers(outcome["layers"]))
        except InputError:
            layers = ()  # an unknown layout is no evidence, and no failure either
    return EngineBuild(
        log=log,
        layers=layers,
        sha256=sha256,
        size_bytes=len(plan),
        timing_cache=timings.read_bytes() if timings.exists() else None,
        warnings=tuple(outcome["warnings"]),
    )


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8") if path.exists() else ""
