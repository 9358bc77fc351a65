"""Dense and sparse TensorRT engines on your GPU: one command, no network.

    python benchmarks/tensorrt_gpu.py [--sample digits-resnet] [--out DIR]

Needs an NVIDIA GPU of compute capability 8.0 or later, TensorRT 10 or 11, and a torch
that sees the GPU. Models of a few Linear and feed-forward shapes, and a sample model,
get 2:4 weights by magnitude and go through `step-cli export --to tensorrt --bench`, in
fp16 and bf16 and quantized to int8 and fp8,
which builds an engine that may use sparse tactics and one that may not, runs both and
times them. Writes tensorrt_gpu.json after each row: versions, per layer what was
eligible and chosen, both medians, and what the builder said of sparsity, word by word.
A row that fails is recorded and passed over. Without a GPU or TensorRT it says so and
exits with 6. No run of it has been recorded yet.
"""

import argparse
import json
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from step_cli.commands.export import run as export
from step_cli.config.commands import ExportConfig
from step_cli.errors import MissingError, StepError
from step_cli.formats.tensorrt.api import compute_capabilities, find_runtime

PRECISIONS = ("fp16", "bf16", "int8", "fp8")
CODES = ("int8", "fp8")  # of them; the graph around the codes is fp32
SAMPLES = 64  # random ones, that the ranges of int8 and fp8 are measured on


@dataclass(frozen=True)
class Case:
    """A model made of Linear layers: the widths between them, and tokens at once."""

    name: str
    widths: tuple[int, ...]
    tokens: int


CASES = [
    *(Case(f"linear 1024, {n} tokens", (1024, 1024), n) for n in (16, 1024)),
    *(Case(f"linear 4096, {n} tokens", (4096, 4096), n) for n in (16, 1024)),
    Case("FFN of GPT-2 XL, 1024 tokens", (1600, 6400, 1600), 1024),
    Case("FFN of a 7B model, 1024 tokens", (4096, 11008, 4096), 1024),
]
MODEL = """
from torch import nn

def build():
    widths = {widths}
    layers = []
    for width_in, width_out in zip(widths, widths[1:]):
        layers += [nn.Linear(width_in, width_out), nn.ReLU()]
    return nn.Sequential(*layers[:-1])
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--sample", default="digits-resnet", help="name, or '' for none"
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    try:
        need_tensorrt_and_gpu()
    except StepError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    options.out.mkdir(parents=True, exist_ok=True)
    document = {"machine": machine(), "seed": 0, "rows": []}
    with tempfile.TemporaryDirectory() as folder:
        for row in rows(Path(folder), options.sample):
            document["rows"].append(row)
            text = json.dumps(document, indent=2) + "\n"
            (options.out / "tensorrt_gpu.json").write_text(text)
            print(summary(row), flush=True)
    return 0 if any("error" not in row for row in document["rows"]) else 1


def need_tensorrt_and_gpu() -> None:
    """Refuse a machine that cannot tell anything about sparse engines.

    Raises:
        MissingError: TensorRT, a GPU with sparse tensor cores, or a torch that sees it
            is missing.
    """
    import torch

    find_runtime("tensorrt")
    found = compute_capabilities()[0]
    if float(found) < export.SPARSE_SINCE:
        raise MissingError(
            f"sparse tactics need compute capability {export.SPARSE_SINCE}, "
            f"found {found}"
        )
    if not torch.cuda.is_available():
        raise MissingError("this torch sees no GPU; install one with CUDA")


def machine() -> dict[str, Any]:
    """What the numbers were measured with."""
    import onnx
    import torch

    runtime = find_runtime("tensorrt")
    return {
        "gpu": torch.cuda.get_device_name(),
        "compute_capability": compute_capabilities()[0],
        "tensorrt": runtime.version,
        "torch": torch.__version__,
        "cuda of torch": torch.version.cuda,
        "onnx": onnx.__version__,
        "python": platform.python_version(),
        "system": platform.platform(),
    }


def rows(
    folder: Path, sample: str, backend: str = "tensorrt"
) -> Iterator[dict[str, Any]]:
    """Export and time everything, one row for each model and precision."""
    models: dict[str, Callable[[], dict[str, Any]]] = {
        case.name: lambda case=case: linear_checkpoint(folder, case) for case in CASES
    }
    if sample:
        models[f"sample:{sample}"] = lambda: sample_checkpoint(folder, sample)
    for name, make in models.items():
        for precision in PRECISIONS:
            found = measured(folder, make, precision, backend)
            yield {"model": name, "precision": precision, **found}


def measured(
    folder: Path, make: Callable[[], dict[str, Any]], precision: str, backend: str
) -> dict[str, Any]:
    """One row; where it cannot be timed, what was built is still told."""
    errors = []
    for bench in (True, False):
        try:
            report = export_engine(folder, make(), precision, backend, bench=bench)
        except Exception as error:  # of any kind: the other rows are worth having
            errors.append(f"{type(error).__name__}: {error}")
            continue
        row = row_of(report)
        return {**row, "not timed": errors[0]} if errors else row
    return {"error": errors[-1]}


def summary(row: dict[str, Any]) -> str:
    """One row in one line, for whoever waits."""
    name = f"{row['model']}, {row['precision']}"
    if "error" in row:
        return f"{name}: FAILED, {row['error']}"
    chosen = sum(layer["chosen"] is True for layer in row["layers"])
    speed = row.get("sparse_speedup")
    timed = "not timed" if speed is None else f"sparse {speed:.2f}x as fast as dense"
    return f"{name}: {chosen} of {len(row['layers'])} layers run sparse, {timed}"


def linear_checkpoint(folder: Path, case: Case) -> dict[str, Any]:
    """Random 2:4 weights of a stack of Linear layers, and how to export them."""
    from step_cli.models.spec import build_model

    # A name for each: Python imports a file once.
    code = folder / f"stack_{'_'.join(map(str, case.widths))}.py"
    code.write_text(MODEL.format(widths=case.widths))
    spec = f"{code}:build"
    path = save_pruned(folder, build_model(spec).model)
    shape = f"{case.tokens}x{case.widths[0]}"
    return {
        "checkpoint": path,
        "model": spec,
        "input": [f"input:float32:{shape}"],
        "calibration": save_samples(folder, {"input": (case.widths[0],)}),
    }


def sample_checkpoint(folder: Path, sample: str) -> dict[str, Any]:
    """An untrained sample model, pruned: what its engine costs, not what it knows."""
    from step_cli.models.spec import build_model

    spec = f"sample:{sample}"
    built = build_model(spec)
    path = save_pruned(folder, built.model)
    examples = built.example_inputs or {}
    floats = {k: v for k, v in examples.items() if v.is_floating_point()}
    shapes = {name: tuple(value.shape[1:]) for name, value in floats.items()}
    tokens = {k: tuple(v.shape[1:]) for k, v in examples.items() if k not in floats}
    calibration = save_samples(folder, shapes, tokens)
    return {"checkpoint": path, "model": spec, "calibration": calibration}


def save_samples(
    folder: Path,
    shapes: dict[str, tuple[int, ...]],
    tokens: dict[str, tuple[int, ...]] | None = None,
) -> Path:
    """Random samples, for codes that are to be timed and not to be right.

    Args:
        folder: Where they go.
        shapes: Of inputs of normal numbers, without the samples.
        tokens: Of inputs of small integers.
    """
    import numpy as np

    rng = np.random.default_rng(0)
    arrays: dict[str, Any] = {
        name: rng.normal(size=(SAMPLES, *shape)).astype(np.float32)
        for name, shape in shapes.items()
    }
    for name, shape in (tokens or {}).items():
        arrays[name] = rng.integers(1, 100, (SAMPLES, *shape))
    np.savez(folder / "samples.npz", **arrays)
    return folder / "samples.npz"


def save_pruned(folder: Path, model: Any) -> Path:
    """Save a model 2:4 by magnitude, with its plan, as fp32 safetensors."""
    import torch

    from step_cli.formats.plan import KEY, plan_json
    from step_cli.formats.pytorch.arrays import to_array
    from step_cli.formats.safetensors.writer import save_safetensors
    from step_cli.nm.selection import Selection
    from step_cli.optim.layers import choose_layers, plan_of
    from step_cli.optim.mask import nm_mask

    generator = torch.Generator().manual_seed(0)
    plan = plan_of(choose_layers(model, Selection()))
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, 0.02, generator=generator)
            if name in plan:
                weight.mul_(nm_mask(weight.abs(), "2:4", plan[name].axis))
    path = folder / "m.safetensors"
    state = {name: to_array(value) for name, value in model.state_dict().items()}
    save_safetensors(path, state, {KEY: plan_json(plan)})
    return path


def export_engine(
    folder: Path,
    given: dict[str, Any],
    precision: str,
    backend: str = "tensorrt",
    *,
    bench: bool = True,
) -> Any:
    """Build, run and time both engines, as the command line would.

    Args:
        folder: For what is written.
        given: How to export the model, its calibration samples among it.
        precision: fp16 or bf16, or the codes to quantize to.
        backend: The library.
        bench: Whether to time them.
    """
    given = dict(given)
    samples = given.pop("calibration")
    if precision in CODES:
        given |= {"quantize": precision, "calibration": samples}
    else:
        given["precision"] = precision
    config = ExportConfig(
        out=folder / "m.plan",
        to="tensorrt",
        backend=backend,
        bench=bench,
        no_check=True,  # half precision is slow in torch on a CPU
        force=True,
        **given,
    )
    return export.run(config)


def row_of(report: Any) -> dict[str, Any]:
    """What the result file keeps of a report; evidence that is missing stays null."""
    kept = {"ok", "backend", "layers", "bench", "bytes", "sparsity", "notes"}
    kept |= {"quantization"}
    found: dict[str, Any] = json.loads(report.document())
    row = {key: found[key] for key in sorted(kept)}
    log = Path(report.build_log).read_text(encoding="utf-8").splitlines()
    row["said of sparsity"] = [line for line in log if "sparsity" in line.lower()][:50]
    bench = row["bench"]
    if bench is not None:
        row["sparse_speedup"] = bench["dense_ms"] / bench["sparse_ms"]
    return row


if __name__ == "__main__":
    sys.exit(main())
