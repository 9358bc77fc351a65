"""Every option of every command: type, default, bounds and help, declared once.

The configuration file of `train` is a model of its own, in `config/train.py`.
"""

import os
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from step_cli.config.types import (
    AxisOfGlob,
    Config,
    OutputFile,
    Patterns,
    Recipes,
    SparsePattern,
    StepOrFraction,
    option,
    refuse_directory,
)
from step_cli.nm.pattern import Plan
from step_cli.nm.selection import Selection
from step_cli.nm.target_table import TargetName


class SelectionConfig(Config):
    """The options that choose tensors, patterns and axes, of three commands."""

    nm: SparsePattern | None = option(
        None, "Use this N:M pattern (default: that of the plan, or 2:4)", metavar="N:M"
    )
    include: list[str] = option(
        list, "Select only tensors whose names match GLOB; repeatable", metavar="GLOB"
    )
    exclude: list[str] = option(
        list, "Exclude tensors whose names match GLOB; repeatable", metavar="GLOB"
    )
    axis: list[AxisOfGlob] = option(
        list,
        "Set the axis that groups of M run along, for tensors whose names match GLOB; "
        "repeatable",
        metavar="GLOB=AXIS",
    )
    plan: Path | None = option(
        None, "Read the N:M plan from this file, not from the checkpoint"
    )
    key: str | None = option(
        None,
        "Find the state dict of a torch file under this key; join nested keys by dots",
        metavar="PATH",
    )

    def selection(self, plan: Plan | None) -> Selection:
        """The selection that these options make; ``plan`` is the one that holds."""
        return Selection(
            include=self.include,
            exclude=self.exclude,
            axes=self.axis,
            pattern=self.nm,
            plan=plan,
        )


class TrainCommandConfig(Config):
    """Options of ``train``."""

    config: Path = Field(description="The training configuration, a TOML file")
    set: list[str] = option(
        list, "Override one key of CONFIG; repeatable", metavar="SECTION.KEY=VALUE"
    )
    run_dir: Path | None = option(
        None, "Write the run or the comparison here (default: runs/<config name>)"
    )
    evaluate: Path | None = option(
        None,
        "Print the metrics of this checkpoint, or of this ONNX file in ONNX Runtime; "
        "train nothing and write nothing",
    )
    resume: bool = option(
        False,
        "Continue a stopped run or comparison; the result is the same, bit for bit",
    )
    force: bool = option(False, "Replace an existing run directory")
    recipes: Recipes | None = option(
        None,
        "Train with each of these recipes and compare the results",
        metavar="NAME,...",
    )
    patterns: Patterns | None = option(
        None,
        "Compare the recipes at these patterns (default: the one in CONFIG)",
        metavar="N:M,...",
    )
    seeds: int = option(
        1,
        "Train with this many seeds: train.seed, train.seed + 1, ...",
        ge=1,
        le=1000,
    )
    dry_run: bool = option(
        False, "List the runs of a comparison and estimate their time; write nothing"
    )


class AutoswitchProfileConfig(Config):
    """Options of ``autoswitch-profile``."""

    source: Path = Field(
        description="A training configuration (.toml) to train densely; or a run "
        "directory of `train`, or its variance.jsonl, to read without training"
    )
    criterion: list[str] = option(
        list, "Evaluate only this criterion; repeatable (default: all)"
    )
    eps: float | None = option(
        None,
        "Set the threshold of autoswitch and autoswitch-geometric (default: Adam's "
        "eps); with --criterion autoswitch-relative alone, that of this criterion "
        "(default: 1 - beta2)",
        gt=0,
        allow_inf_nan=False,
    )
    beta2: float | None = option(
        None,
        "Set Adam's beta2 (default: the recorded one, or 0.999); if a recording has "
        "another beta2, only staleness and fixed are evaluated",
        gt=0,
        lt=1,
    )
    window: int | None = option(
        None,
        "Average over this many steps (default: round(1 / (1 - beta2)))",
        ge=1,
        le=10**9,
    )
    step: StepOrFraction | None = option(
        None,
        "Set the step of `fixed` (default: that of the run, or 0.25)",
        metavar="STEP|FRACTION",
    )
    t_min: StepOrFraction | None = option(
        None,
        "Allow no switch up to this step (default: that of the run, or 0.1)",
        metavar="STEP|FRACTION",
    )
    t_max: StepOrFraction | None = option(
        None,
        "Switch right after this step at the latest (default: that of the run, or 0.5)",
        metavar="STEP|FRACTION",
    )
    steps: int | None = option(
        None,
        "Record or read this many steps (default: of a recording, all; else until "
        "every criterion has decided, and 1001 more)",
        ge=1,
    )
    seeds: int = option(
        1,
        "Train with this many seeds, and show mean and standard deviation",
        ge=1,
        le=1000,
    )
    set: list[str] = option(
        list, "Override one key of SOURCE; repeatable", metavar="SECTION.KEY=VALUE"
    )
    out: Path | None = option(
        None, "Keep the run or runs in this directory", metavar="DIR"
    )
    force: bool = option(False, "Replace an existing --out")
    plot: OutputFile | None = option(
        None, "Draw the curves to FILE.svg, FILE.png or FILE.html"
    )


MODEL_HELP = (
    "Build this model if the checkpoint names none: sample:NAME, a Hugging Face "
    "directory, file.py:function or package.module:function"
)
Device = Literal["cpu", "cuda"]
Method = Literal["magnitude", "wanda", "sparsegpt", "random"]
Refit = Literal["none", "layer", "block"]


class PruneConfig(SelectionConfig):
    """Options of ``prune``."""

    checkpoint: Path = Field(
        description="A file (.safetensors, .onnx, .pt, ...) or a directory"
    )
    out: Path = Field(
        description="The file or directory to write, in the format of CHECKPOINT"
    )
    method: Method = option("magnitude", "Choose which weights to keep by this method")
    calibration: Path | None = option(
        None,
        "Read the samples for wanda, sparsegpt, --refit and --recalibrate-bn from "
        "this text, .jsonl or .npz file",
    )
    calibration_samples: int = option(128, "Use at most this many samples", ge=1)
    refit: Refit = option(
        "none",
        "Fit the kept weights so that, on the samples, the output of each layer or "
        "block is close to that of the dense one",
    )
    recalibrate_bn: bool = option(
        False,
        "Measure the running statistics of batch norms again on the samples, after "
        "pruning",
    )
    model: str | None = option(None, MODEL_HELP, metavar="SPEC")
    transposable: bool = option(
        False, "Hold the pattern along the outputs too, so that w^T also holds it"
    )
    permute: bool = option(
        False,
        "Reorder channels before pruning so that more magnitude is kept; only where "
        "the graph of the model shows that no output changes",
    )
    input: list[str] = option(
        list,
        "Trace the model for --permute with this input, such as x:float32:1x3x32x32",
        metavar="NAME:DTYPE:SHAPE",
    )
    density: float | None = option(
        None,
        "Keep at most this share of all weights; each layer gets its own N",
        gt=0,
        lt=1,
    )
    seed: int = option(
        0,
        "Seed of --method random, and of the order of batches in --refit block",
        ge=0,
    )
    device: Device = option(
        "cpu", "Run the samples and compute the weights on this device, block by block"
    )
    dry_run: bool = option(False, "Show what would be done; write nothing")
    resume: bool = option(
        False,
        "Continue a stopped pruning run that uses samples, after its last finished "
        "block",
    )
    force: bool = option(
        False, "Replace an existing OUT and the files of a stopped pruning run"
    )

    @model_validator(mode="before")
    @classmethod
    def _out_is_like_checkpoint(cls, given: Any) -> Any:
        if isinstance(given, dict) and os.path.isfile(given.get("checkpoint") or ""):
            refuse_directory(given.get("out"))
        return given


Format = Literal[
    "table", "json", "jsonl", "markdown", "junit", "sarif", "github", "html"
]  # fmt: skip


class VerifyConfig(SelectionConfig):
    """Options of ``verify-nm``."""

    checkpoint: list[Path] = Field(
        min_length=1,
        description="A file (.safetensors, .onnx, .pt, ...) or a directory",
    )
    exact: bool = option(False, "Require exactly N non-zeros, not at most N")
    strict: bool = option(False, "Fail if a matrix cannot be checked")
    min_coverage: float | None = option(
        None,
        "Fail if less than this share of the matrix elements could be checked",
        ge=0,
        le=1,
        allow_inf_nan=False,
    )
    baseline: Path | None = option(
        None, "Fail if a mask differs from that of this checkpoint"
    )
    target: list[TargetName] = option(
        list, "Show whether this library has a sparse kernel for each layer; repeatable"
    )
    tensorrt: bool = option(False, "Same as --target tensorrt")
    format: Format | None = option(
        None, "Print the result in this format (default: table)"
    )
    output: OutputFile | None = option(
        None, "Write the result to this file, and print the table to stdout"
    )

    @property
    def targets(self) -> list[TargetName]:
        """The libraries to judge for, each once."""
        first: list[TargetName] = ["tensorrt"] if self.tensorrt else []
        return list(dict.fromkeys([*first, *self.target]))


Target = Literal["compressed", "dense", "onnx", "tensorrt"]
Precision = Literal["fp32", "fp16", "bf16"]
Backend = Literal["auto", "tensorrt", "tensorrt-rtx"]
Quantize = Literal["int8", "fp8"]


class ExportConfig(SelectionConfig):
    """Options of ``export``."""

    checkpoint: Path = Field(description="A file or directory of weights")
    out: Path = Field(
        description="The file to write; with --to dense of a directory, also one"
    )
    to: Target | None = option(None, "Write this kind of file (required)")
    model: str | None = option(None, MODEL_HELP, metavar="SPEC")
    input: list[str] = option(
        list,
        "Declare an input; a size with a name is dynamic: input_ids:int64:batch,seq",
        metavar="NAME:DTYPE:SHAPE",
    )
    opset: int | None = option(
        None, "Use this ONNX operator set, 17 to 25 (default: 20)", ge=17, le=25
    )
    precision: Precision | None = option(
        None,
        "Compute in this number type (default: that of CHECKPOINT; for tensorrt, fp16)",
    )
    quantize: Quantize | None = option(
        None,
        "Quantize inputs, weights and outputs of sparse layers; zero weights stay zero",
    )
    calibration: Path | None = option(
        None, "Measure the ranges of --quantize on these samples: text, .jsonl or .npz"
    )
    calibration_samples: int = option(
        128,
        "Use at most this many samples; every fifth is used only to compare outputs",
        ge=1,
    )
    backend: Backend = option("auto", "Build the engine with this library")
    compute_capability: list[str] = option(
        list, "Build for this GPU generation, such as 8.6; repeatable", metavar="X.Y"
    )
    min: list[str] = option(
        list,
        "Set the smallest shape of an input with named sizes (default: 1 item)",
        metavar="NAME:SHAPE",
    )
    opt: list[str] = option(
        list,
        "Set the most common shape, at which kernels are timed (default: 8 items of a "
        "quarter of the longest length)",
        metavar="NAME:SHAPE",
    )
    max: list[str] = option(
        list,
        "Set the largest shape (default: 32 items of the longest length that the "
        "model's config.json has)",
        metavar="NAME:SHAPE",
    )
    require_sparse: bool = option(False, "Fail if TensorRT chose no sparse kernel")
    tolerance: float | None = option(
        None,
        "Allow this difference from PyTorch, relative to max(1, max|reference|) "
        "(default: 1e-4, 1e-2, 5e-2 for fp32, fp16, bf16)",
        gt=0,
    )
    no_check: bool = option(False, "Do not compare with PyTorch")
    workspace: int | None = option(
        None, "Allow each layer of the engine this much temporary memory, in MiB", ge=1
    )
    timing_cache: OutputFile | None = option(
        None, "Read kernel timings from this file and add new ones (full TensorRT only)"
    )
    bench: bool = option(
        False,
        "Time the sparse and the dense model in ONNX Runtime, or as engines on a GPU",
    )
    report: OutputFile | None = option(
        None,
        "Write what is known of the output and of each layer to this page",
        metavar="FILE.html",
    )
    force: bool = option(False, "Replace an existing output")

    @property
    def to_directory(self) -> bool:
        """Whether OUT is a directory: dense weights of one, under no file's name."""
        directory = self.to == "dense" and os.path.isdir(self.checkpoint)
        return directory and self.out.suffix.lower() != ".safetensors"

    @model_validator(mode="before")
    @classmethod
    def _out_is_a_file(cls, given: Any) -> Any:
        """Except with --to dense, which may write a directory."""
        if isinstance(given, dict) and not (
            given.get("to") == "dense" and os.path.isdir(given.get("checkpoint") or "")
        ):
            refuse_directory(given.get("out"))
        return given
