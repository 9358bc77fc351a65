"""The child process of one engine build.

A build that fails inside the compiler changes the bytes of the next build in the same
process, so each build has its own. The plan and the log go to the files that the
request names: a crash must not lose the log.
"""

import contextlib
import hashlib
import importlib
from pathlib import Path
from typing import Any

from step_cli.formats.child_process import answer
from step_cli.formats.tensorrt.api import network_flags

MIB = 1 << 20


class BuildFailedError(Exception):
    """The library returned None, False or -1; its records hold why."""


def build(request: dict[str, Any]) -> dict[str, Any]:
    """Build what the request describes; the outcome shows whether that went well."""
    with open(request["log"], "w", encoding="utf-8", errors="replace") as log:
        records: list[str] = []
        try:
            return {"ok": True, **_build(request, log, records)}
        except Exception as error:
            return {"ok": False, "raised": str(error), "records": records}


def _build(request: dict[str, Any], log: Any, records: list[str]) -> dict[str, Any]:
    trt: Any = importlib.import_module(request["module"])
    logger = _logger(trt, log, records)
    # Kept in names until the end: a parser on a collected network crashes.
    builder = trt.Builder(logger)
    network = builder.create_network(network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(request["onnx"]):
        records += [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise BuildFailedError("the ONNX model could not be parsed")
    if not network.num_layers or not network.num_outputs:
        raise BuildFailedError("Network must have at least one output and one layer")
    config = _config(trt, builder, request)
    _add_profiles(builder, config, request["profiles"])
    cache, warnings = _timing_cache(config, request)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise BuildFailedError("the builder returned no plan")
    content = bytes(plan)
    Path(request["plan"]).write_bytes(content)
    if cache is not None:
        # The cache fills during the build, so it is stored only now.
        timings = bytes(config.get_timing_cache().serialize())
        Path(request["new_timing_cache"]).write_bytes(timings)
    return {
        "warnings": warnings,
        "layers": _layers(trt, logger, plan, request),
        "sha256": hashlib.sha256(content).hexdigest(),
    }


def _logger(trt: Any, log: Any, records: list[str]) -> Any:
    """The one logger of this process: everything into the file, errors remembered."""

    class FileLogger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.write(f"{severity.name}: {message}\n")
            log.flush()  # a crash must not lose the last words
            if severity.name in {"ERROR", "INTERNAL_ERROR"}:
                records.append(message)

    return FileLogger()


def _config(trt: Any, builder: Any, request: dict[str, Any]) -> Any:
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    if request["sparse"]:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    if request["workspace_mib"] is not None:
        pool = trt.MemoryPoolType.WORKSPACE
        config.set_memory_pool_limit(pool, request["workspace_mib"] * MIB)
    targets = request["compute_capabilities"]
    if targets and hasattr(config, "set_compute_capability"):
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            member = getattr(trt.ComputeCapability, "SM" + target.replace(".", ""))
            if not config.set_compute_capability(member, index):
                raise BuildFailedError(f"compute capability {target} was refused")
    return config


def _add_profiles(builder: Any, config: Any, profiles: list[dict[str, Any]]) -> None:
    if not profiles:
        return
    together = builder.create_optimization_profile()
    for profile in profiles:
        together.set_shape(profile["name"], *profile["shapes"])
    if config.add_optimization_profile(together) < 0:
        raise BuildFailedError("the optimization profile was refused")


def _timing_cache(config: Any, request: dict[str, Any]) -> tuple[Any, list[str]]:
    """Attach the timing cache, an empty one where the old one is damaged."""
    if request["new_timing_cache"] is None:
        return None, []
    old = request["timing_cache"]
    content = Path(old).read_bytes() if old else b""
    cache, warnings = config.create_timing_cache(content), []
    if cache is None or not config.set_timing_cache(cache, False):
        warnings.append("the timing cache is damaged or of another version; rebuilt")
        cache = config.create_timing_cache(b"")
        config.set_timing_cache(cache, False)
    return cache, warnings


def _layers(trt: Any, logger: Any, plan: Any, request: dict[str, Any]) -> str | None:
    """Layer information of the engine just built, where a GPU can open it.

    Only ever of our own bytes, made a moment ago: opening an engine runs native code.
    """
    if not request["inspect"]:
        return None
    with contextlib.suppress(Exception):
        engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
        inspector = engine.create_engine_inspector()
        return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
    return None


if __name__ == "__main__":
    answer(build)
