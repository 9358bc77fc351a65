"""`export --to tensorrt`: an engine, its report and log, and evidence on each layer."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from step_cli.commands.export.bench import (
    time_against_dense,
    time_engines,
    times_engine,
)
from step_cli.commands.export.evidence import (
    Engine,
    after_build,
    backend_report,
    before_build,
)
from step_cli.commands.export.model import load_model
from step_cli.commands.export.onnx import CheckFailedError, WrittenOnnx, write_onnx
from step_cli.commands.export.other_machine import commands_to_build
from step_cli.commands.export.report import engine_report, onnx_report
from step_cli.commands.export.source import Source
from step_cli.config.commands import ExportConfig
from step_cli.errors import MissingError, StepError
from step_cli.formats.files.staged import staged
from step_cli.formats.files.temporary import temporary_directory
from step_cli.formats.huggingface.model_config import (
    longest_input,
    longest_input_beside,
)
from step_cli.formats.onnx.exporter import need_export_libraries
from step_cli.formats.onnx.inputs import GraphInput, example_tensors, inputs_of_onnx
from step_cli.formats.onnx.publish import OnnxPlace
from step_cli.formats.tensorrt.api import TrtRuntime, check_targets, find_runtime
from step_cli.formats.tensorrt.engine import EngineBuild, EngineOptions, build_engine
from step_cli.formats.tensorrt.evidence import parse_log
from step_cli.formats.tensorrt.profiles import BOUNDS, Profile, make_profiles
from step_cli.render.status_line import working_on
from step_cli.reports import BenchReport, ExportLayer, ExportReport

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Graph:
    """The ONNX file that an engine is built from.

    Attributes:
        path: The file.
        layers: Whether each holds its pattern in it.
        written: What its checks found; None where it is the checkpoint itself.
        longest: How many tokens the model takes; None: it is not known.
    """

    path: Path
    layers: list[ExportLayer]
    written: WrittenOnnx | None
    longest: int | None


def find_backend(config: ExportConfig) -> TrtRuntime:
    """The library to build with, looked for before any work.

    Raises:
        MissingError: There is none, or it cannot do what is required of it.
        UsageError: It does not build for a compute capability.
    """
    commands = commands_to_build(config)
    try:
        runtime = find_runtime(config.backend)
    except MissingError as error:
        raise MissingError(
            f"{error.message}; or, on a GPU machine: {commands}"
        ) from None
    named = config.backend != "auto"
    check_targets(runtime, config.compute_capability, chosen=named)
    if config.require_sparse and not runtime.honours_sparsity:
        raise MissingError(
            f"--require-sparse: {runtime.kind} {runtime.version} ignores sparse "
            f"weights; on a GPU machine with TensorRT: {commands}"
        )
    if config.timing_cache is not None and runtime.kind == "tensorrt-rtx":
        log.warning("--timing-cache has no effect with TensorRT-RTX")
    return runtime


def to_tensorrt(
    config: ExportConfig, source: Source, runtime: TrtRuntime
) -> ExportReport:
    """Build the engine; nothing is published unless every check passes."""
    with temporary_directory("onnx") as folder:
        graph = _graph(config, source, folder)
        if graph.written is not None and not graph.written.ok:
            return onnx_report(config, source, graph.written)
        inputs = inputs_of_onnx(graph.path)
        profiles = make_profiles(inputs, _shapes(config), graph.longest)
        bench = graph.written.bench if graph.written else None
        if config.bench and graph.written is None:
            bench = _bench_onnx(config, inputs, profiles)
        return _publish(config, source, runtime, graph, profiles, bench)


def _graph(config: ExportConfig, source: Source, folder: Path) -> Graph:
    """The checkpoint itself if it is ONNX, else its model, exported for the purpose."""
    if source.checkpoint.format == "onnx":
        layers = [
            layer.model_copy(update={"onnx_name": layer.name})
            for layer in source.layers()
        ]
        longest = longest_input_beside(config.checkpoint)
        return Graph(config.checkpoint, layers, None, longest)
    need_export_libraries()
    loaded = load_model(config, source.checkpoint, source.plan)
    # Wrong shapes are refused before the model is traced.
    longest = longest_input(loaded.model)
    profiles = make_profiles(loaded.inputs, _shapes(config), longest)
    place = OnnxPlace(folder / "model.onnx")
    written = write_onnx(
        config, loaded, place, _fixed(_given_optima(profiles), loaded.inputs)
    )
    return Graph(place.path, written.layers, written, longest)


def _bench_onnx(
    config: ExportConfig, inputs: list[GraphInput], profiles: list[Profile]
) -> BenchReport | None:
    """The time of an ONNX file in ONNX Runtime, where no GPU can time its engine."""
    if times_engine(config):
        return None
    need_export_libraries()
    examples = example_tensors(inputs, shapes=_given_optima(profiles))
    return time_against_dense(config.checkpoint, examples)


def _publish(
    config: ExportConfig,
    source: Source,
    runtime: TrtRuntime,
    graph: Graph,
    profiles: list[Profile],
    bench: BenchReport | None,
) -> ExportReport:
    """Build and publish the engine with its log and report."""
    with (
        suppress(CheckFailedError),
        _outputs(config, source) as (plan_path, log_path, report_path),
    ):
        engine = _build(config, runtime, graph, plan_path, profiles)
        required = engine.used or not config.require_sparse
        if required and config.bench and times_engine(config):
            build, options = engine.build, engine.options
            bench = time_engines(runtime, graph.path, plan_path, build, options)
        report = engine_report(config, source, engine, bench)
        if not report.ok:
            raise CheckFailedError
        log_path.write_text(engine.build.log, encoding="utf-8")
        report_path.write_text(report.document() + "\n", encoding="utf-8")
    if report.ok:
        _keep_timings(config, engine.build)
    return report


def _build(
    config: ExportConfig,
    runtime: TrtRuntime,
    graph: Graph,
    plan_path: Path,
    profiles: list[Profile],
) -> Engine:
    layers, any_two_four = before_build(graph.layers, graph.path)
    if not any_two_four:
        log.warning("no layer is 2:4 in the graph: sparse weights are not permitted")
    options = EngineOptions(
        sparse=any_two_four,
        profiles=profiles,
        compute_capabilities=config.compute_capability,
        workspace_mib=config.workspace,
        timing_cache=config.timing_cache,
    )
    try:
        with working_on(f"building {config.out} with {runtime.kind}"):
            build = build_engine(runtime, graph.path, plan_path, options)
    except StepError as error:
        if error.file == str(graph.path):  # ours; the user gave the checkpoint
            error.file = str(config.checkpoint)
        raise
    seen = parse_log(build.log)
    if build.layers:
        seen = replace(seen, layers=build.layers)
    return Engine(
        build,
        options,
        seen,
        after_build(layers, runtime, seen, graph.path),
        backend_report(runtime, seen, options),
        graph.written,
        _sha256(graph.path),
    )


@contextmanager
def _outputs(config: ExportConfig, source: Source) -> Iterator[tuple[Path, Path, Path]]:
    """Where to write plan, log and report; the plan appears last, when all is well."""
    out, inputs = config.out, source.inputs
    side = [
        out.with_name(f"{out.name}.{kind}") for kind in ("build.log", "report.json")
    ]
    with (
        staged(out, force=config.force, inputs=inputs) as plan_path,
        staged(side[0], force=True, inputs=inputs) as log_path,
        staged(side[1], force=True, inputs=inputs) as report_path,
    ):
        yield plan_path, log_path, report_path


def _keep_timings(config: ExportConfig, build: EngineBuild) -> None:
    if config.timing_cache is not None and build.timing_cache is not None:
        with staged(config.timing_cache, force=True) as path:
            path.write_bytes(build.timing_cache)


def _shapes(config: ExportConfig) -> dict[str, list[str]]:
    return {option: getattr(config, option) for option in BOUNDS}


def _given_optima(profiles: list[Profile]) -> dict[str, tuple[int, ...]]:
    """The likeliest shapes, for work on the CPU; default ones are sizes for a GPU."""
    if any(profile.is_default for profile in profiles):
        return {}
    return {profile.name: profile.shapes[1] for profile in profiles}


def _fixed(
    optima: dict[str, tuple[int, ...]], inputs: list[GraphInput]
) -> dict[str, tuple[int, ...]]:
    """Example shapes at the likeliest sizes; sizes of 1 are special to the tracer."""
    dynamic = {given.name: given for given in inputs if given.dynamic}
    return {
        name: tuple(
            max(2, size) if isinstance(open_, str) else size
            for size, open_ in zip(shape, dynamic[name].shape, strict=True)
        )
        for name, shape in optima.items()
    }


@working_on("hashing the graph")
def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
