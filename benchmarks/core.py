"""Speed of masks and optimizer steps on one CPU core, against peers in the same run.

    python benchmarks/core.py [--runs N] [--out DIR]

Peers of the mask: `topk` and scatter, and the pattern search of ASP (which ModelOpt's
`create_asp_mask` repeats). Peer of the step: `torch.optim.AdamW(fused=True)` on the
same 28 tensors of GPT-2 small, 49.5 M weights stored [in, out] as its Conv1D does.
Figures are medians of alternating runs after warm-up. Writes core.json and core.md.
"""

import argparse
import itertools
import json
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path

import torch
from processor import processor
from torch import Tensor, nn
from torch.nn import functional

from step_cli.models.spec import build_model
from step_cli.nm.pattern import NMPattern
from step_cli.optim.compiled import can_compile
from step_cli.optim.compiled_mask import compiled_keep_mask
from step_cli.optim.mask import magnitude_mask
from step_cli.recipes.sparse_adamw import sparse_adamw

SEED = 0
SHAPE = (4096, 4096)
BLOCK = ((768, 2304), (768, 768), (768, 3072), (3072, 768))  # Conv1D of one block
BLOCKS = 7
MASK_BARS = {"2:4": 15, "1:4": 5, "4:8": 5, "1:16": 5}  # times faster than each peer
TRAINING_BAR = 1.10
ASP_PATTERNS = 16  # its search looks at all, which grow too many to wait for
STEP_BARS = {  # at most this many times the fused AdamW step
    "precondition": 1.15,
    "precondition with AutoSwitch": 1.6,
    "mask learning, compiled": 1.7,
    "mask learning, eager": 15.0,
}


SMALL = 150, (16, 16)  # tensors whose step costs calls, not arithmetic
SMALL_BARS = {"precondition": 1.5, "mask learning": 2.0}  # times the for-loop of AdamW


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    document = {
        "command": f"python benchmarks/core.py --runs {options.runs}",
        "machine": f"{processor()}, {platform.system()}, 1 thread",
        "versions": {name: metadata.version(name) for name in ("step-cli", "torch")},
        "seed": SEED,
        "compiled": can_compile(),
        "masks": [
            mask_row(p, axis, options.runs) for p in MASK_BARS for axis in (1, 0)
        ],
        "steps": step_rows(options.runs),
        "small": small_rows(3 * options.runs),
        "training": training_row(options.runs),
        "memory": memory_row(),
    }
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "core.json").write_text(json.dumps(document, indent=2) + "\n")
    (options.out / "core.md").write_text(table(document))
    print(table(document))


def medians(calls: dict[str, Callable[[], object]], runs: int) -> dict[str, float]:
    """Median seconds of each call; the calls take turns, so drift hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(runs + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if number:  # the first round warms up, and compiles
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def mask_row(text: str, axis: int, runs: int) -> dict[str, object]:
    """One pattern and axis: ours, compiled and eager, against the peers and a copy.

    All start from the weights.
    """
    pattern = NMPattern.parse(text)
    weight = torch.randn(SHAPE, generator=torch.Generator().manual_seed(SEED))
    calls: dict[str, Callable[[], object]] = {
        "copy": weight.clone,
        "eager": lambda: magnitude_mask(weight, pattern, axis),
        "topk": lambda: topk_mask(weight.abs(), pattern, axis),
    }
    if can_compile():
        calls["compiled"] = lambda: compiled_keep_mask(weight, pattern, axis)
    if math.comb(pattern.m, pattern.n) <= ASP_PATTERNS:
        calls["asp"] = lambda: asp_mask(weight.abs(), pattern, axis)
    found = medians(calls, runs)
    expected = magnitude_mask(weight, pattern, axis)
    assert torch.equal(topk_mask(weight.abs(), pattern, axis), expected)
    return {"pattern": text, "axis": axis, "seconds": found}


def topk_mask(scores: Tensor, pattern: NMPattern, axis: int) -> Tensor:
    """What most code does: top-N of each group, scattered into zeros."""
    rows = scores if axis == 1 else scores.T
    groups = rows.reshape(-1, pattern.m)
    mask = torch.zeros_like(groups, dtype=torch.bool)
    mask.scatter_(1, groups.topk(pattern.n, dim=1).indices, True)
    mask = mask.view(rows.shape)
    return mask if axis == 1 else mask.T


def asp_mask(scores: Tensor, pattern: NMPattern, axis: int) -> Tensor:
    """ASP's search: the best of all patterns, by a matrix product."""
    rows = scores if axis == 1 else scores.T
    patterns = torch.zeros(math.comb(pattern.m, pattern.n), pattern.m)
    for row, kept in enumerate(itertools.combinations(range(pattern.m), pattern.n)):
        patterns[row, list(kept)] = 1.0
    groups = rows.reshape(-1, pattern.m)
    mask = patterns[torch.argmax(groups @ patterns.T, dim=1)].view(rows.shape).bool()
    return mask if axis == 1 else mask.T


def step_rows(runs: int) -> dict[str, float]:
    """Seconds of one optimizer step, by phase and form."""
    calls = {"AdamW, fused": adamw(), "AdamW, for-loop": adamw(fused=False)}
    calls["precondition"] = ours(switch=10**9)
    calls["precondition with AutoSwitch"] = ours(total_steps=10**9)
    calls["mask learning, eager"] = ours(switch=1, compile=False)
    if can_compile():
        calls["mask learning, compiled"] = ours(switch=1, compile=True)
    return medians(calls, runs)


def small_rows(runs: int) -> dict[str, float]:
    """Seconds of one eager step over many small tensors, by phase."""
    count, shape = SMALL
    made = {name: tensors([shape] * count) for name in ("for-loop", "foreach")}
    calls = {
        f"AdamW, {name}": torch.optim.AdamW(
            some, lr=1e-4, foreach=name == "foreach"
        ).step
        for name, some in made.items()
    }
    for name, switch in (("precondition", 10**9), ("mask learning", 1)):
        group = {"params": tensors([shape] * count), "pattern": "2:4", "axis": 1}
        optimizer = sparse_adamw([group], recipe="step", switch=switch, lr=1e-4)
        optimizer.step()
        calls[name] = optimizer.step
    return medians(calls, runs)


def tensors(shapes: Sequence[tuple[int, int]] = BLOCK * BLOCKS) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(SEED)
    made = []
    for shape in shapes:
        p = nn.Parameter(torch.randn(shape, generator=generator) * 0.02)
        p.grad = torch.randn(shape, generator=generator) * 1e-3
        made.append(p)
    return made


def adamw(*, fused: bool = True) -> Callable[[], object]:
    return torch.optim.AdamW(tensors(), lr=1e-4, fused=fused, foreach=False).step


def ours(**options: object) -> Callable[[], object]:
    group = {"params": tensors(), "pattern": "2:4", "axis": 0}
    optimizer = sparse_adamw([group], recipe="step", lr=1e-4, fused=True, **options)  # type: ignore[arg-type]
    optimizer.step()
    return optimizer.step


def training_row(runs: int) -> dict[str, float]:
    """Seconds of a whole training step of stdlib-gpt, 32 x 128 tokens."""
    calls = {"dense": training_step("dense"), "mask learning": training_step("step")}
    return medians(calls, max(3, runs // 2))


def training_step(recipe: str) -> Callable[[], object]:
    torch.manual_seed(SEED)
    model = build_model("sample:stdlib-gpt").model
    optimizer = sparse_adamw(model, recipe=recipe, switch=1, lr=1e-4)
    tokens = torch.randint(256, (32, 128))

    def step() -> None:
        scores = model(input_ids=tokens).logits.flatten(0, 1)
        functional.cross_entropy(scores, tokens.flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    return step


def memory_row() -> dict[str, int]:
    """Bytes of optimizer state and of the weights, after the switch."""
    parameters = tensors()
    group = {"params": parameters, "pattern": "2:4", "axis": 0}
    optimizer = sparse_adamw([group], recipe="step", lr=1e-4, switch=1)
    optimizer.step()
    optimizer.step()
    kept = [t for state in optimizer.state.values() for t in state.values()]
    storages = {
        t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in kept
    }
    weights = sum(p.numel() * p.element_size() for p in parameters)
    return {"weights": weights, "state": sum(storages.values())}


def table(document: dict) -> str:
    """The result as Markdown."""
    versions = ", ".join(f"{k} {v}" for k, v in document["versions"].items())
    lines = [
        "# Masks and optimizer steps on one core",
        "",
        f"`{document['command']}` on {document['machine']}; {versions}.",
        "",
        "Masks of a 4096 x 4096 fp32 tensor, milliseconds; times faster than the peer.",
        "",
        "| pattern | axis | copy | compiled | eager | topk | ASP's search | bar |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in document["masks"]:
        lines.append(mask_line(row))
    lines += [
        "",
        "One optimizer step over 28 tensors of GPT-2 small, 49.5 M weights.",
        "",
    ]
    lines += ["| step | ms | times fused AdamW | bar |", "|---|---|---|---|"]
    steps = document["steps"]
    for name, seconds in steps.items():
        bar = STEP_BARS.get(name, "-")
        times = seconds / steps["AdamW, fused"]
        lines.append(f"| {name} | {seconds * 1e3:.1f} | {times:.2f} | {bar} |")
    count, shape = SMALL
    lines += [
        "",
        f"One eager optimizer step over {count} tensors of {shape[0]} x {shape[1]}.",
        "",
        "| step | ms | times AdamW's for-loop | bar |",
        "|---|---|---|---|",
    ]
    for name, seconds in document["small"].items():
        times = seconds / document["small"]["AdamW, for-loop"]
        bar = SMALL_BARS.get(name, "-")
        lines.append(f"| {name} | {seconds * 1e3:.2f} | {times:.2f} | {bar} |")
    training = document["training"]
    times = training["mask learning"] / training["dense"]
    lines += [
        "",
        "A whole training step of stdlib-gpt, 32 x 128 tokens: "
        f"mask learning takes {times:.3f} times the dense step (bar {TRAINING_BAR}).",
    ]
    memory = document["memory"]
    copies = memory["state"] / memory["weights"]
    lines += [
        "",
        f"State after the switch: {copies:.2f} times the weights; dense Adam 2.",
    ]
    return "\n".join(lines) + "\n"


def mask_line(row: dict) -> str:
    seconds = row["seconds"]
    best = seconds.get("compiled", seconds["eager"])

    def cell(name: str) -> str:
        if name not in seconds:
            return "-"
        times = seconds[name] / best
        return f"{seconds[name] * 1e3:.1f} ({times:.1f}x)"

    compiled = f"{seconds['compiled'] * 1e3:.1f}" if "compiled" in seconds else "-"
    eager = f"{seconds['eager'] * 1e3:.1f} ({seconds['topk'] / seconds['eager']:.1f}x)"
    copy, bar = f"{seconds['copy'] * 1e3:.1f}", f"{MASK_BARS[row['pattern']]}x"
    cells = [row["pattern"], row["axis"], copy, compiled, eager]
    cells += [cell("topk"), cell("asp"), bar]
    return "| " + " | ".join(str(text) for text in cells) + " |"


if __name__ == "__main__":
    main()
