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
        None, "N:M pattern (default: that of the plan; without one, 2:4)", metavar="N:M"
    )
    include: list[str] = option(list, "Only tensors with these names", metavar="GLOB")
    exclude: list[str] = option(
        list, "Leave out tensors with these names", metavar="GLOB"
    )
    axis: list[AxisOfGlob] = option(
        list, "Axis the groups run along", metavar="GLOB=AXIS"
    )
    plan: Path | None = option(None, "Plan file, instead of the one stored")
    key: str | None = option(
        None,
        "Where in a torch file the state dict lies: its keys, joined by dots",
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

    config: Path = Field(description="Training configuration, a TOML file")
    set: list[str] = option(
        list, "Override one key of the file", metavar="SECTION.KEY=VALUE"
    )
    run_dir: Path | None = option(
        None, "Where the run or comparison is written (default: runs/<config name>)"
    )
    evaluate: Path | None = option(
        None, "Print the metrics of this checkpoint; train and write nothing"
    )
    resume: bool = option(
        False, "Resume a run or a comparison that was stopped, bit for bit"
    )
    force: bool = option(False, "Replace an existing run directory")
    recipes: Recipes | None = option(
        None, "Train with each of these recipes and compare them", metavar="NAME,..."
    )
    patterns: Patterns | None = option(
        None,
        "Patterns to compare them at (default: that of the configuration)",
        metavar="N:M,...",
    )
    seeds: int = option(
        1, "Compare over this many seeds, from train.seed on", ge=1, le=1000
    )
    dry_run: bool = option(
        False, "List the runs of a comparison and how long they take; write nothing"
    )


class AutoswitchProfileConfig(Config):
    """Options of ``autoswitch-profile``."""

    source: Path = Field(
        description="A training configuration (.toml), which is trained densely; or a "
        "run directory of `train`, or its variance.jsonl, which is replayed"
    )
    criterion: list[str] = option(list, "Criterion to replay (default: all)")
    eps: float | None = option(
        None,
        "Threshold of the two AutoSwitch rules of the paper (default: Adam's eps), or "
        "of autoswitch-relative, if it is the only criterion (default: 1 - beta2)",
        gt=0,
        allow_inf_nan=False,
    )
    beta2: float | None = option(
        None,
        "Adam's beta2, where the recording has none (default: 0.999); another "
        "than the recorded one, for staleness and fixed only",
        gt=0,
        lt=1,
    )
    window: int | None = option(
        None, "Steps averaged over (default: round(1 / (1 - beta2)))", ge=1, le=10**9
    )
    step: StepOrFraction | None = option(
        None,
        "Step of `fixed` (default: the run's, or 0.25)",
        metavar="STEP|FRACTION",
    )
    t_min: StepOrFraction | None = option(
        None,
        "No switch at this step or before (default: 0.1, or the run's)",
        metavar="STEP|FRACTION",
    )
    t_max: StepOrFraction | None = option(
        None,
        "Switch after this step at the latest (default: 0.5, or the run's)",
        metavar="STEP|FRACTION",
    )
    steps: int | None = option(
        None,
        "Steps to record, or to look at (default: until every criterion is decided "
        "and 1000 more; all that are recorded)",
        ge=1,
    )
    seeds: int = option(
        1, "Train with this many seeds, for mean and spread", ge=1, le=1000
    )
    set: list[str] = option(
        list, "Override one key of the configuration", metavar="SECTION.KEY=VALUE"
    )
    out: Path | None = option(
        None, "Keep the run, or the runs, in this directory", metavar="DIR"
    )
    force: bool = option(False, "Replace an existing --out")
    plot: OutputFile | None = option(
        None, "Draw the curves: FILE.svg, FILE.png or FILE.html"
    )


MODEL_HELP = (
    "Model of the checkpoint, if it names none: sample:NAME, a Hugging Face "
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
    out: Path = Field(description="What to write, in the format of CHECKPOINT")
    method: Method = option("magnitude", "What decides which weights are kept")
    calibration: Path | None = option(
        None,
        "Samples for wanda, sparsegpt, --refit and --recalibrate-bn: text, .jsonl or "
        ".npz",
    )
    calibration_samples: int = option(128, "How many samples to use at most", ge=1)
    refit: Refit = option(
        "none",
        "Fit the weights that are kept to what the dense layers, or blocks, give on "
        "the samples",
    )
    recalibrate_bn: bool = option(
        False,
        "Measure the running statistics of batch norms on the samples anew, once all "
        "is pruned",
    )
    model: str | None = option(None, MODEL_HELP, metavar="SPEC")
    transposable: bool = option(
        False, "Hold the pattern along inputs and outputs, so that w^T holds it too"
    )
    permute: bool = option(
        False,
        "Put channels in an order that keeps more magnitude and changes no output, "
        "where the graph of the model proves that it may",
    )
    input: list[str] = option(
        list,
        "Input that --permute traces the model with: x:float32:1x3x32x32",
        metavar="NAME:DTYPE:SHAPE",
    )
    density: float | None = option(
        None, "Share of weights to keep; N is chosen for each layer", gt=0, lt=1
    )
    seed: int = option(
        0, "Seed of --method random, and of the order of samples in --refit block", ge=0
    )
    device: Device = option(
        "cpu", "Where samples are run and their Hessians are solved, block by block"
    )
    dry_run: bool = option(False, "Show what would be done, and write nothing")
    resume: bool = option(
        False, "Go on from the finished blocks of a stopped prune with samples"
    )
    force: bool = option(
        False, "Replace an existing OUT, and what a stopped prune has left"
    )

    @model_validator(mode="before")
    @classmethod
    def _out_is_like_checkpoint(cls, given: Any) -> Any:
        if isinstance(given, dict) and os.path.isfile(given.get("checkpoint") or ""):
            refuse_directory(given.get("out"))
        return given


Format = Literal["table", "json", "jsonl", "markdown", "junit", "sarif", "github"]


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
        "Fail if a smaller share of the elements could be judged",
        ge=0,
        le=1,
        allow_inf_nan=False,
    )
    baseline: Path | None = option(None, "Require the masks of this checkpoint")
    target: list[TargetName] = option(
        list, "Show whether this library has a sparse kernel for each layer"
    )
    tensorrt: bool = option(False, "Short for --target tensorrt")
    format: Format | None = option(None, "How to show the result (default: table)")
    output: OutputFile | None = option(
        None, "File to write the result to; the table still shows"
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
    out: OutputFile = Field(description="File to write")
    to: Target | None = option(None, "What to write; required")
    model: str | None = option(None, MODEL_HELP, metavar="SPEC")
    input: list[str] = option(
        list,
        "Input of the model; a dimension may be a name: input_ids:int64:batch,seq",
        metavar="NAME:DTYPE:SHAPE",
    )
    opset: int | None = option(
        None, "ONNX operator set, 17 to 25 (default: 20)", ge=17, le=25
    )
    precision: Precision | None = option(
        None, "Number type in the graph (default: the checkpoint's; for tensorrt fp16)"
    )
    quantize: Quantize | None = option(
        None,
        "Quantize inputs, weights and outputs of sparse layers; zeros stay zeros",
    )
    calibration: Path | None = option(
        None, "Samples that --quantize measures ranges on: text, .jsonl or .npz"
    )
    calibration_samples: int = option(
        128, "How many samples to use at most; every fifth is compared only", ge=1
    )
    backend: Backend = option("auto", "Library that builds the engine")
    compute_capability: list[str] = option(
        list, "GPU generation to build for, such as 8.6", metavar="X.Y"
    )
    min: list[str] = option(
        list, "Smallest shape of an input with named sizes", metavar="NAME:SHAPE"
    )
    opt: list[str] = option(
        list, "Likeliest shape, at which kernels are timed", metavar="NAME:SHAPE"
    )
    max: list[str] = option(list, "Largest shape", metavar="NAME:SHAPE")
    require_sparse: bool = option(False, "Fail if no sparse kernel was chosen")
    tolerance: float | None = option(
        None,
        "Largest difference from PyTorch, relative to max(1, max|reference|) "
        "(default: 1e-4, 1e-2, 5e-2 for fp32, fp16, bf16)",
        gt=0,
    )
    no_check: bool = option(False, "Do not compare with PyTorch")
    workspace: int | None = option(
        None, "Scratch memory a layer of the engine may use, in MiB", ge=1
    )
    timing_cache: OutputFile | None = option(
        None, "Kernel timings to read and extend (full TensorRT)"
    )
    bench: bool = option(
        False, "Time sparse against dense: ONNX Runtime, or engines on a GPU"
    )
    force: bool = option(False, "Replace an existing output")
