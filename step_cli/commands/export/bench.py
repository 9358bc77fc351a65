"""`export --bench`: sparse beside dense, in ONNX Runtime or as engines on a GPU."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from step_cli.config.commands import ExportConfig
from step_cli.formats.files.temporary import temporary_directory
from step_cli.formats.onnx.session import OrtSession, feeds_of
from step_cli.formats.tensorrt.api import TrtRuntime, compute_capabilities
from step_cli.formats.tensorrt.engine import EngineBuild, EngineOptions, build_engine
from step_cli.formats.tensorrt.timing import engine_ms
from step_cli.render.status_line import working_on
from step_cli.reports import BenchReport

if TYPE_CHECKING:
    from torch import Tensor

Examples = Mapping[str, "Tensor"]


def times_engine(config: ExportConfig) -> bool:
    """Whether ``--bench`` times engines, on the GPU here, and not ONNX Runtime."""
    return config.to == "tensorrt" and bool(compute_capabilities())


@working_on("timing the graph beside a dense one")
def time_against_dense(path: Path, examples: Examples) -> BenchReport:
    """Median times of the file, and of the same file with its zeros filled."""
    from step_cli.formats.onnx.rewriter import save_dense_twin

    feeds = feeds_of(examples)
    with temporary_directory("bench") as folder:
        twin = folder / "dense.onnx"
        save_dense_twin(path, twin)
        sparse_ms = OrtSession(path).median_ms(feeds)
        dense_ms = OrtSession(twin).median_ms(feeds)
    return BenchReport(
        runtime="ONNX Runtime, CPU", sparse_ms=sparse_ms, dense_ms=dense_ms
    )


@working_on("timing the engine beside a dense one")
def time_engines(
    runtime: TrtRuntime,
    onnx_path: Path,
    plan_path: Path,
    build: EngineBuild,
    options: EngineOptions,
) -> BenchReport:
    """Time the engine beside one of the same graph that may not use sparse weights."""
    shapes = {profile.name: profile.shapes[1] for profile in options.profiles}
    with temporary_directory("bench") as folder:
        twin = folder / "dense.plan"
        dense = build_engine(runtime, onnx_path, twin, replace(options, sparse=False))
        dense_ms = engine_ms(runtime, twin, dense.sha256, shapes)
    sparse_ms = engine_ms(runtime, plan_path, build.sha256, shapes)
    gpu = ", ".join(compute_capabilities()[:1])
    return BenchReport(
        runtime=f"{runtime.kind} {runtime.version}, GPU of compute capability {gpu}",
        sparse_ms=sparse_ms,
        dense_ms=dense_ms,
    )
