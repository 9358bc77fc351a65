"""The report of each target, made at the end of what its steps found."""

from typing import TYPE_CHECKING, Any

from step_cli.commands.export.other_machine import commands_to_build, trtexec
from step_cli.commands.export.source import Source
from step_cli.config.commands import ExportConfig
from step_cli.formats.tensorrt.profiles import Profile, default_note
from step_cli.reports import (
    BenchReport,
    ExportBytes,
    ExportReport,
    InputShapes,
    SparsityCounts,
)

if TYPE_CHECKING:
    from step_cli.commands.export.compressed import Compressed
    from step_cli.commands.export.dense import Dense
    from step_cli.commands.export.evidence import Engine
    from step_cli.commands.export.onnx import WrittenOnnx

NOTHING_VERIFIED = "no layer of the plan is a weight of the graph: nothing to verify"
IGNORED = "this backend ignores sparse weights: the engine is real, and runs dense"


def broken_report(config: ExportConfig, source: Source) -> ExportReport:
    """Of a checkpoint that breaks its pattern; nothing was written."""
    return ExportReport(
        ok=False,
        to=str(config.to),
        output=None,
        bytes=ExportBytes(dense=source.dense_bytes),
        layers=source.layers(),
        skipped=source.skipped,
        notes=["weights break their pattern, so nothing was written", *source.advice],
    )


def compressed_report(
    config: ExportConfig, source: Source, written: "Compressed"
) -> ExportReport:
    """Of a compressed file."""
    return ExportReport(
        ok=True,
        to="compressed",
        output=str(config.out),
        bytes=ExportBytes(
            dense=source.dense_bytes,
            output=written.size_bytes,
            values=written.values_bytes,
            metadata=written.metadata_bytes,
        ),
        ratio=source.dense_bytes / written.size_bytes,
        layers=source.layers(),
        skipped=source.skipped,
        negative_zeros=written.negative_zeros,
    )


def dense_report(config: ExportConfig, written: "Dense") -> ExportReport:
    """Of a checkpoint that was written as plain weights."""
    return ExportReport(
        ok=True,
        to="dense",
        output=str(config.out),
        bytes=ExportBytes(dense=written.dense_bytes, output=written.size_bytes),
        ratio=written.dense_bytes / written.size_bytes,
        layers=[],
        negative_zeros=written.negative_zeros,
        notes=written.notes,
    )


def onnx_report(
    config: ExportConfig, source: Source, written: "WrittenOnnx"
) -> ExportReport:
    """Of an ONNX file, also one that is not published as a check of it failed."""
    return ExportReport(
        ok=written.ok,
        to=str(config.to),
        output=str(config.out) if written.ok else None,
        bytes=ExportBytes(dense=source.dense_bytes, output=written.size_bytes),
        ratio=source.dense_bytes / written.size_bytes,
        layers=written.layers,
        skipped=source.skipped,
        bench=written.bench,
        notes=[] if written.verified else [NOTHING_VERIFIED],
        **_checks(written),
    )


def engine_report(
    config: ExportConfig, source: Source, engine: "Engine", bench: BenchReport | None
) -> ExportReport:
    """Of an engine, also one that is not published as it had to use sparse tactics."""
    ok = engine.used or not config.require_sparse
    build = engine.build
    return ExportReport(
        ok=ok,
        to="tensorrt",
        output=str(config.out) if ok else None,
        bytes=ExportBytes(dense=source.dense_bytes, output=build.size_bytes),
        ratio=source.dense_bytes / build.size_bytes,
        layers=engine.layers,
        skipped=source.skipped,
        backend=engine.backend,
        sha256={"onnx": engine.onnx_sha256, "plan": build.sha256},
        sparsity=[
            SparsityCounts(
                eligible=pair.eligible.count if pair.eligible else None,
                chosen=pair.chosen.count if pair.chosen else None,
            )
            for pair in engine.seen.pairs
        ],
        build_log=f"{config.out}.build.log" if ok else None,
        shapes=[_input_shapes(profile) for profile in engine.options.profiles],
        trtexec=trtexec(config, engine.options.profiles),
        bench=bench,
        notes=_notes(config, engine),
        **({} if engine.written is None else _checks(engine.written)),
    )


def _checks(written: "WrittenOnnx") -> dict[str, Any]:
    return {
        "parity": written.parity,
        "parity_precision": written.parity_precision,
        "precision": written.precision,
        "opset": written.opset,
        "quantization": written.quantization,
    }


def _input_shapes(profile: Profile) -> InputShapes:
    low, optimum, high = map(list, profile.shapes)
    return InputShapes(
        input=profile.name,
        min=low,
        opt=optimum,
        max=high,
        by_default=profile.is_default,
    )


def _notes(config: ExportConfig, engine: "Engine") -> list[str]:
    notes = list(engine.build.warnings)
    if (chosen := default_note(engine.options.profiles)) is not None:
        notes.append(chosen)
    if engine.seen.out_of_memory:
        notes.append("the builder ran out of memory for some kernels")
    if engine.backend.sparse_weights == "ignored":
        precision = engine.written.precision if engine.written else "fp16"
        commands = commands_to_build(config, engine.options.profiles, precision)
        notes += [
            IGNORED,
            f"for sparse kernels, on a machine with the GPU: {commands}",
        ]
    return notes
