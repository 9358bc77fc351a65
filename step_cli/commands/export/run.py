"""`export`: compressed files, ONNX and TensorRT engines, and what each layer became."""

import logging
from pathlib import Path
from typing import Any

from step_cli.commands.export.report import (
    broken_report,
    compressed_report,
    dense_report,
    onnx_report,
)
from step_cli.commands.export.source import Source, open_source
from step_cli.config.commands import ExportConfig
from step_cli.errors import MissingError, OutputError, UsageError
from step_cli.formats.files.staged import staged
from step_cli.formats.files.target import checked_target
from step_cli.formats.onnx.inputs import parse_input
from step_cli.render.status_line import working_on
from step_cli.reports import ExportReport

log = logging.getLogger(__name__)

# Options that mean something for some targets only; others would be ignored silently.
_SELECTION = {"nm", "include", "exclude", "axis", "plan", "key"}
_GRAPH = {"model", "input", "opset", "precision", "tolerance", "no_check", "bench"}
_GRAPH |= {"quantize", "calibration", "calibration_samples"}
_ENGINE = {"backend", "compute_capability", "min", "opt", "max", "require_sparse"}
_ENGINE |= {"workspace", "timing_cache"}
_COMMON = {"checkpoint", "out", "to", "report", "force"}
OPTIONS = {
    "compressed": _COMMON | _SELECTION,
    "dense": _COMMON,
    "onnx": _COMMON | _SELECTION | _GRAPH,
    "tensorrt": _COMMON | _SELECTION | _GRAPH | _ENGINE,
}
FP8_SINCE = 19  # opset of ONNX
SPARSE_SINCE = 8.0  # compute capability of the first sparse tensor cores


def run(config: ExportConfig) -> ExportReport:
    """Export a checkpoint, and write the page of ``--report``.

    Raises:
        UsageError: An option is missing, or does not go with ``--to``.
        NothingSelectedError: No layer was selected.
        InputError: The checkpoint, or its model, cannot be exported.
        OutputError: The output exists, or could not be written.
        MissingError: A library or a GPU is missing.
        NonFiniteError: A weight is not finite, or overflows in the precision.
    """
    _check_options(config)
    inputs = _inputs(config)
    checked_target(
        config.out, force=config.force, inputs=inputs, directory=config.to_directory
    )
    if config.timing_cache is not None:
        checked_target(config.timing_cache, force=True, inputs=[*inputs, config.out])
    if config.report is not None:
        _check_page(config.report, inputs, config)
    report = _exported(config)
    if config.report is not None:
        _write_page(config.report, config, report)
    return report


def _exported(config: ExportConfig) -> ExportReport:
    if config.to == "dense":
        from step_cli.commands.export.dense import to_dense

        return dense_report(config, to_dense(config))
    if config.to == "tensorrt":
        return _tensorrt(config)
    if config.to == "onnx":
        with working_on("loading libraries"):
            from step_cli.formats.onnx.exporter import need_export_libraries

            need_export_libraries()
    source = _source(config)
    if not source.holds:
        return broken_report(config, source)
    if config.to == "compressed":
        from step_cli.commands.export.compressed import to_compressed

        return compressed_report(config, source, to_compressed(config, source))
    from step_cli.commands.export.onnx import to_onnx

    return onnx_report(config, source, to_onnx(config, source))


def export(path: str | Path, out: str | Path, to: str, **options: Any) -> ExportReport:
    """Export a checkpoint: the report behind `export --json`.

    Args:
        path: A CHECKPOINT.
        out: The file to write.
        to: "compressed", "dense", "onnx" or "tensorrt".
        options: Those of the command: ``nm="2:4"``, ``force=True``, ...

    Raises:
        pydantic.ValidationError: An option is unknown, or its value refused.
        StepError: As `run`.
    """
    given = {"checkpoint": path, "out": out, "to": to, **options}
    return run(ExportConfig.model_validate(given))


def _check_page(page: Path, inputs: list[Path], config: ExportConfig) -> None:
    if page.suffix.lower() != ".html":
        raise UsageError("--report: expected a name that ends in .html", file=page)
    cache = [] if config.timing_cache is None else [config.timing_cache]
    checked_target(page, force=True, inputs=[*inputs, config.out, *cache])


def _write_page(page: Path, config: ExportConfig, report: ExportReport) -> None:
    from step_cli.render import export_page

    text = export_page.html(report, str(config.checkpoint))
    try:
        with staged(page, force=True) as staging:
            staging.write_text(text, encoding="utf-8")
    except OutputError as error:
        if report.written is not None:
            error.message += f"; {report.written} is complete"
        raise


def _inputs(config: ExportConfig) -> list[Path]:
    """What is read, so that no output replaces it."""
    code = Path((config.model or "").rpartition(":")[0])
    plan = [] if config.plan is None else [config.plan]
    samples = [] if config.calibration is None else [config.calibration]
    code_file = [code] if code.is_file() else []
    return [config.checkpoint, *plan, *samples, *code_file]


def _tensorrt(config: ExportConfig) -> ExportReport:
    from step_cli.commands.export.tensorrt import find_backend, to_tensorrt

    with working_on("looking for a backend"):
        runtime = find_backend(config)
    if config.require_sparse:
        _need_sparse_cores()
    source = _source(config)
    if not source.holds:
        return broken_report(config, source)
    return to_tensorrt(config, source, runtime)


def _need_sparse_cores() -> None:
    from step_cli.formats.tensorrt.api import compute_capabilities

    found = compute_capabilities()[:1]
    if found and float(found[0]) < SPARSE_SINCE:
        raise MissingError(
            f"sparse tactics need compute capability {SPARSE_SINCE}, found {found[0]}"
        )


def _check_options(config: ExportConfig) -> None:
    if config.to is None:
        raise UsageError("--to: name what to write: compressed, dense, onnx, tensorrt")
    for option in _given(config, set(ExportConfig.model_fields) - OPTIONS[config.to]):
        raise UsageError(f"{option} has no meaning with --to {config.to}")
    names = [parse_input(text).name for text in config.input]
    if len(set(names)) < len(names):
        raise UsageError("--input: an input is given twice")
    _check_quantize(config)
    suffix = {"compressed": ".safetensors", "dense": ".safetensors", "onnx": ".onnx"}
    ending = None if config.to_directory else suffix.get(config.to)
    if ending is not None and config.out.suffix.lower() != ending:
        raise UsageError(f"OUT: expected a name that ends in {ending}", file=config.out)


def _check_quantize(config: ExportConfig) -> None:
    if config.quantize is None:
        for option in _given(config, {"calibration", "calibration_samples"}):
            raise UsageError(f"{option} has no meaning without --quantize")
        return
    if config.calibration is None:
        raise UsageError(
            "--quantize: give --calibration FILE, the samples that ranges of inputs "
            "and outputs are measured on: text, .jsonl or .npz"
        )
    if config.precision not in (None, "fp32"):
        raise UsageError(
            f"--precision {config.precision}: a quantized graph is fp32 around its "
            "codes; leave it out"
        )
    if config.quantize == "fp8" and (config.opset or FP8_SINCE) < FP8_SINCE:
        raise UsageError(f"--opset: fp8 needs {FP8_SINCE} or later")


def _given(config: ExportConfig, names: set[str]) -> list[str]:
    """Those of the options that the user has given, as typed."""
    given = sorted(names & config.model_fields_set)
    return [
        "--" + name.replace("_", "-")
        for name in given
        if getattr(config, name) not in (None, False, [])
    ]


def _source(config: ExportConfig) -> Source:
    source = open_source(config)
    if source.checkpoint.format == "onnx":
        if config.to != "tensorrt":
            raise UsageError(
                "an ONNX file can be exported with --to tensorrt only",
                file=config.checkpoint,
            )
        for option in _given(config, _GRAPH - {"bench"}):
            raise UsageError(
                f"{option} has no meaning for a file that is ONNX already: give the "
                "checkpoint that it was made from"
            )
    return source
