"""Table 5 of the STEP paper: bytes of N:M BERT-Base and GPT-2, counted from configs.

    python benchmarks/table5.py [--files] [--out DIR]

The models are built from their transformers configs on the meta device, so no weights
are needed to count. With --files they get random weights, are pruned, saved as fp16 and
exported with `--to compressed`, and the size of the file is set beside the count.
Writes table5.json and table5.md.

Source: Lu et al., ICML 2023, Table 5: megabytes of 10^6 bytes, 16-bit values.
"""

import argparse
import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from sizes import sparse_bytes, values_bytes

from step_cli.commands.export import run as export
from step_cli.config.commands import ExportConfig
from step_cli.nm.axis_rule import AxisRule
from step_cli.nm.pattern import NMPattern
from step_cli.nm.weight_rule import Description, skip_reason
from step_cli.optim.mask import magnitude_mask

PATTERNS = ("2:4", "1:4", "1:16")
MODELS = {
    "BERT-Base": (transformers.BertModel, transformers.BertConfig),
    "GPT-2": (transformers.GPT2Model, transformers.GPT2Config),
}
PRINTED = {  # megabytes and ratio
    ("BERT-Base", "dense"): (216.75, None),
    ("BERT-Base", "2:4"): (131.82, 1.65),
    ("BERT-Base", "1:4"): (89.35, 2.43),
    ("BERT-Base", "1:16"): (57.50, 3.76),
    ("GPT-2", "dense"): (247.06, None),
    ("GPT-2", "2:4"): (162.13, 1.52),
    ("GPT-2", "1:4"): (119.66, 2.06),
    ("GPT-2", "1:16"): (87.81, 2.81),
}
TOKENS = {"embeddings.word_embeddings.weight", "wte.weight"}
VALUE_BYTES = 2
VERSION = transformers.__version__

Sizes = Mapping[str, torch.Size]
Row = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--files", action="store_true", help="write real files too")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    rows = [row for model in MODELS for row in counted(model)]
    if options.files:
        for row in rows:
            row["file"] = file_bytes(row["model"], row["pattern"])
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"seed": 0, "rows": rows}, indent=2) + "\n"
    (options.out / "table5.json").write_text(text)
    (options.out / "table5.md").write_text(page(rows))
    print(page(rows))


def counted(model: str) -> list[Row]:
    """Bytes for each pattern, as the paper counts and of the whole model."""
    kind, config = MODELS[model]
    with torch.device("meta"):
        sizes = {name: p.shape for name, p in kind(config()).named_parameters()}
    paper = {
        name: shape
        for name, shape in sizes.items()
        if name in TOKENS or (is_sparse(name, shape) and "pooler" not in name)
    }
    return [
        {
            "model": model,
            "pattern": pattern,
            "dense": VALUE_BYTES * elements(paper),
            "values": bytes_of(paper, pattern, metadata=False),
            "with_metadata": bytes_of(paper, pattern, metadata=True),
            "model_dense": VALUE_BYTES * elements(sizes),
            "model_compressed": bytes_of(sizes, pattern, metadata=True),
        }
        for pattern in PATTERNS
    ]


def is_sparse(name: str, shape: torch.Size) -> bool:
    """Whether the rule of `prune` and `export` takes it for a weight."""
    return skip_reason(Description(name, "float16", tuple(shape))) is None


def elements(sizes: Sizes) -> int:
    return sum(shape.numel() for shape in sizes.values())


def bytes_of(sizes: Sizes, pattern: str, *, metadata: bool) -> int:
    """Bytes of all tensors, the weights among them N:M."""
    count = sparse_bytes if metadata else values_bytes
    parsed = NMPattern.parse(pattern)
    return sum(
        count(shape.numel(), parsed, VALUE_BYTES)
        if is_sparse(name, shape)
        else VALUE_BYTES * shape.numel()
        for name, shape in sizes.items()
    )


def file_bytes(model: str, pattern: str) -> int:
    """Size of the file of `export --to compressed`, of random weights in fp16."""
    from safetensors.torch import save_file

    torch.manual_seed(0)
    kind, config = MODELS[model]
    state = dict(kind(config()).named_parameters())
    parsed = NMPattern.parse(pattern)
    for name, weight in state.items():
        state[name] = value = weight.detach().half()
        if is_sparse(name, value.shape):
            axis = AxisRule([]).of(Description(name, "float16", tuple(value.shape)))
            state[name] = value * magnitude_mask(value, parsed, axis.axis)
    with tempfile.TemporaryDirectory() as folder:
        dense, out = Path(folder) / "dense.safetensors", Path(folder) / "c.safetensors"
        save_file(state, dense)
        report = export.run(
            ExportConfig(checkpoint=dense, out=out, to="compressed", nm=parsed)
        )
        assert report.ok
        return out.stat().st_size


def page(rows: list[Row]) -> str:
    """The table as Markdown, the paper's numbers beside ours."""
    lines = [
        "# Table 5 of the STEP paper, counted again",
        "",
        "`python benchmarks/table5.py --files`; megabytes of 10^6 bytes, 16-bit",
        f"values, models built from the configs of transformers {VERSION}.",
        "",
        "| model | pattern | paper | values only | with sparse metadata |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        model, dense = row["model"], row["dense"]
        if row["pattern"] == PATTERNS[0]:
            printed, _ = PRINTED[model, "dense"]
            lines.append(f"| {model} | dense | {printed:.2f} | {mb(dense)} | |")
        size, ratio = PRINTED[model, row["pattern"]]
        lines.append(
            f"| {model} | {row['pattern']} | {size:.2f} ({ratio:.2f}x) "
            f"| {against(row['values'], dense)} "
            f"| {against(row['with_metadata'], dense)} |"
        )
    lines += ["", *differences(rows), "", *whole_models(rows)]
    return "\n".join(lines) + "\n"


def differences(rows: list[Row]) -> list[str]:
    off = [
        f"  * {row['model']} {row['pattern']}: "
        f"{row['dense'] / row['values']:.3f}, printed {printed:.2f}"
        for row in rows
        if round(row["dense"] / row["values"], 2)
        != (printed := PRINTED[row["model"], row["pattern"]][1])
    ]
    return [
        "Where the paper differs:",
        "",
        "* Its dense rows hold the token embedding and the 84,934,656 weights of the",
        "  blocks, nothing else: no positions, biases, norms or pooler.",
        "* Its text says that metadata is included; its numbers are values only. The",
        "  right column adds 2 bits for each kept value of 2:4 and 1:4, 4 for 1:16.",
        "* Ratios that are rounded wrongly:",
        *off,
    ]


def whole_models(rows: list[Row]) -> list[str]:
    lines = [
        "Whole models, all parameters counted, every weight of the default rule N:M",
        "(the pooler too); the file is what `export --to compressed` writes, header",
        "and checksums included:",
        "",
        "| model | pattern | dense | with sparse metadata | file |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        file = against(row["file"], row["model_dense"]) if "file" in row else "-"
        lines.append(
            f"| {row['model']} | {row['pattern']} | {mb(row['model_dense'])} "
            f"| {against(row['model_compressed'], row['model_dense'])} | {file} |"
        )
    return lines


def against(size: int, dense: int) -> str:
    return f"{mb(size)} ({dense / size:.3f}x)"


def mb(size: int) -> str:
    return f"{size / 1e6:.3f}"


if __name__ == "__main__":
    main()
