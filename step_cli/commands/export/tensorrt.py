"""`export --to tensorrt`: an engine, its report and log, and the truth about layers."""

import hashlib
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from step_cli.commands.export.bench import (
    time_against_dense,
    time_engines,
    times_engine,
)
from step_cli.commands.export.elsewhere import elsewhere, trtexec
from step_cli.commands.export.evidence import backend_report, climb
from step_cli.commands.export.model import load_model
from step_cli.commands.export.onnx import CheckFailedError, onnx_report, write_onnx
from step_cli.commands.export.source import Source
from step_cli.config.commands import ExportConfig
from step_cli.errors import MissingError, StepError
from step_cli.formats.files.scratch import scratch_directory
from step_cli.formats.files.staged import staged
from step_cli.formats.onnx.exporter import need_export_libraries
from step_cli.formats.onnx.inputs import GraphInput, example_tensors, inputs_of_onnx
from step_cli.formats.tensorrt.api import TrtRuntime, check_targets, find_runtime
from step_cli.formats.tensorrt.engine import EngineBuild, EngineOptions, build_engine
from step_cli.formats.tensorrt.evidence import parse_log
from step_cli.formats.tensorrt.profiles import Profile, make_profiles
from step_cli.reports import BenchReport, ExportBytes, ExportReport, SparsityCounts

log = logging.getLogger(__name__)

IGNORED = "this backend ignores sparse weights: the engine is real, and runs dense"


@dataclass(frozen=True)
class OnnxSource:
    """The ONNX file that an engine is built from, and its report so far."""

    path: Path
    report: ExportReport


def find_backend(config: ExportConfig) -> TrtRuntime:
    """The library to build with, asked before any work.

    Raises:
        MissingError: There is none, or it cannot do what is required of it.
        UsageError: It does not know a compute capability.
    """
    commands = elsewhere(config, trtexec(config))
    try:
        runtime = find_runtime(config.backend)
    except MissingError as error:
        raise MissingError(
            f"{error.message}; or, on a GPU machine: {commands}"
        ) from None
    asked = config.backend != "auto"
    check_targets(runtime, config.compute_capability, asked=asked)
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
    with scratch_directory("onnx") as folder:
        try:
            made = _onnx_source(config, source, folder)
            if not made.report.ok:
                return made.report
            inputs = inputs_of_onnx(made.path)
            profiles = make_profiles(inputs, _shapes(config))
            if config.bench and made.path == config.checkpoint:
                made.report.bench = _bench_onnx(config, inputs, profiles)
            return _build(config, source, runtime, made, profiles)
        except CheckFailedError as failed:
            return failed.report


def _onnx_source(config: ExportConfig, source: Source, folder: Path) -> OnnxSource:
    """The checkpoint itself if it is ONNX, else its model, exported for the purpose."""
    if source.checkpoint.format == "onnx":
        return OnnxSource(config.checkpoint, _report_of_onnx(config, source))
    need_export_libraries()
    loaded = load_model(config, source.checkpoint, source.plan)
    # Wrong shapes are refused before the model is traced.
    profiles = make_profiles(loaded.inputs, _shapes(config))
    optima = {profile.name: profile.shapes[1] for profile in profiles}
    path = folder / "model.onnx"
    written = write_onnx(
        config, loaded, path, "model.onnx.data", _fixed(optima, loaded.inputs)
    )
    return OnnxSource(path, onnx_report(config, source, written))


def _bench_onnx(
    config: ExportConfig, inputs: list[GraphInput], profiles: list[Profile]
) -> BenchReport | None:
    """The time of an ONNX file in ONNX Runtime, where no GPU can time its engine."""
    if times_engine(config):
        return None
    need_export_libraries()
    shapes = {profile.name: profile.shapes[1] for profile in profiles}
    examples = example_tensors(inputs, shapes=shapes)
    return time_against_dense(config.checkpoint, examples)


def _report_of_onnx(config: ExportConfig, source: Source) -> ExportReport:
    report = ExportReport(
        ok=True,
        to="tensorrt",
        output=str(config.out),
        bytes=ExportBytes(dense=source.dense_bytes),
        layers=source.layers(),
        skipped=source.skipped,
    )
    for layer in report.layers:
        layer.onnx_name = layer.name
    return report


def _build(
    config: ExportConfig,
    source: Source,
    runtime: TrtRuntime,
    made: OnnxSource,
    profiles: list[Profile],
) -> ExportReport:
    report = made.report
    options = EngineOptions(
        sparse=climb(report, made.path),
        profiles=profiles,
        compute_capabilities=config.compute_capability,
        workspace_mib=config.workspace,
        timing_cache=config.timing_cache,
    )
    if not options.sparse:
        log.warning("no layer is 2:4 in the graph: sparse weights are not permitted")
    with _outputs(config, source) as (plan_path, log_path, report_path):
        build = _built(config, runtime, made.path, plan_path, options)
        _complete(config, report, runtime, build, options, made.path)
        if config.require_sparse and not _used(report):
            report.ok, report.output, report.build_log = False, None, None
            raise CheckFailedError(report)
        if config.bench and times_engine(config):
            report.bench = time_engines(runtime, made.path, plan_path, build, options)
        log_path.write_text(build.log, encoding="utf-8")
        report_path.write_text(report.document() + "\n", encoding="utf-8")
    _keep_timings(config, build)
    return report


def _built(
    config: ExportConfig,
    runtime: TrtRuntime,
    onnx_path: Path,
    plan_path: Path,
    options: EngineOptions,
) -> EngineBuild:
    """Build, and speak of the user's file where it fails, never of our own."""
    try:
        return build_engine(runtime, onnx_path, plan_path, options)
    except StepError as error:
        if error.file == str(onnx_path):
            error.file = str(config.checkpoint)
        raise


def _used(report: ExportReport) -> bool:
    return report.backend is not None and report.backend.sparse_weights == "used"


def _complete(
    config: ExportConfig,
    report: ExportReport,
    runtime: TrtRuntime,
    build: EngineBuild,
    options: EngineOptions,
    onnx_path: Path,
) -> None:
    """Add to the report what the build showed."""
    seen = parse_log(build.log)
    if build.layers:
        seen = replace(seen, layers=build.layers)
    backend_report(report, runtime, seen, options, onnx_path)
    report.output = str(config.out)
    report.bytes.output = build.size_bytes
    report.ratio = (report.bytes.dense or 0) / build.size_bytes
    report.sha256 = {"onnx": _sha256(onnx_path), "plan": build.sha256}
    report.sparsity = [
        SparsityCounts(
            eligible=pair.eligible.count if pair.eligible else None,
            chosen=pair.chosen.count if pair.chosen else None,
        )
        for pair in seen.pairs
    ]
    report.build_log = f"{config.out}.build.log"
    report.trtexec = trtexec(config, options.profiles)
    report.notes += build.warnings
    if seen.out_of_memory:
        report.notes.append("the builder ran out of memory for some kernels")
    if not runtime.honours_sparsity:
        commands = elsewhere(config, report.trtexec, report.precision or "fp16")
        report.notes += [
            IGNORED,
            f"for sparse kernels, on a machine with the GPU: {commands}",
        ]


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
    return {"min": config.min, "opt": config.opt, "max": config.max}


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


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
