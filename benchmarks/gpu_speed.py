"""Speed and memory on a GPU as ratios against peers in one run; part of gpu.py."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from step_cli.nm.pattern import NMPattern
from step_cli.optim.compiled import can_compile
from step_cli.optim.compiled_mask import compiled_keep_mask
from step_cli.optim.mask import magnitude_mask
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.recipes.sparse_adamw import sparse_adamw

PATTERNS = ("1:2", "2:4", "1:4", "4:8", "1:16", "2:16", "4:32")
SMALL_PATTERNS = ("2:4", "1:16")
SIZES = {"gpt2-small": (768, 12), "1.3B": (2048, 24), "small": (64, 2)}  # width, blocks
STEP_BARS = {  # at most this many times the fused AdamW step
    "precondition": 1.15,
    "precondition with AutoSwitch": 1.6,
    "mask learning, compiled": 1.15,
}
TRAINING_BAR = 1.05  # times the dense training step
MEMORY_BAR = 1.0  # copies of the sparse weights over dense Adam

Bar = dict[str, Any]


def medians(
    calls: dict[str, Callable[[], object]], device: torch.device, runs: int = 10
) -> dict[str, float]:
    """Median milliseconds of each call, taking turns, after two rounds of warm-up."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(runs + 2):
        for name, call in calls.items():
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            if number > 1:
                found[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in found.items()}


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def judged(name: str, value: float, bar: float) -> Bar:
    """One bar and whether it holds."""
    return {"name": name, "value": value, "bar": bar, "ok": value <= bar}


def mask_speed(device: torch.device, *, small: bool) -> dict[str, Any]:
    """Masks by pattern and axis beside a copy of the same weights.

    A copy moves 8 bytes a weight; a mask reads 4 and writes 1.
    """
    width = 256 if small else 8192
    weight = torch.randn(width, width, device=device)
    make = compiled_keep_mask if can_compile(device.type) else magnitude_mask
    calls: dict[str, Callable[[], object]] = {"copy": weight.clone}
    for text in SMALL_PATTERNS if small else PATTERNS:
        for axis in (0, 1):
            pattern = NMPattern.parse(text)
            calls[f"{text} axis {axis}"] = lambda p=pattern, a=axis: make(weight, p, a)
    found = medians(calls, device)
    speed = {
        name: weight.numel() * (8 if name == "copy" else 5) / ms / 1e6
        for name, ms in found.items()
    }
    shares = {name: value / speed["copy"] for name, value in speed.items()}
    return {
        "shape": [width, width],
        "ms": found,
        "gigabytes per second": speed,
        "share of a copy's bandwidth": shares,
        "bars": [],
    }


def step_speed(device: torch.device, size: str) -> dict[str, Any]:
    """One optimizer step by phase, each beside fused AdamW on the same shapes."""
    forms: dict[str, dict[str, Any]] = {
        "precondition": {"switch": 10**9},
        "precondition with AutoSwitch": {"total_steps": 10**9, "compile": True},
        "mask learning, eager": {"switch": 1, "compile": False},
    }
    if can_compile(device.type):
        forms["mask learning, compiled"] = {"switch": 1, "compile": True}
    rows: dict[str, Any] = {}
    for name, options in forms.items():  # two at a time: a 1.3 B model fills a card
        adamw = torch.optim.AdamW(parameters(device, size), lr=1e-4, fused=True)
        ours = make_optimizer(device, size, **options)
        for _ in range(2):
            ours.step()
        calls: dict[str, Callable[[], object]] = {"AdamW": adamw.step, "ms": ours.step}
        found = medians(calls, device)
        rows[name] = {
            "ms": found["ms"],
            "AdamW, fused, ms": found["AdamW"],
            "times AdamW": found["ms"] / found["AdamW"],
            "kernels": kernels(ours.step, device),
        }
    bars = [
        judged(f"{size}: {name}", row["times AdamW"], STEP_BARS[name])
        for name, row in rows.items()
        if name in STEP_BARS
    ]
    return {"steps": rows, "bars": bars}


def kernels(call: Callable[[], object], device: torch.device) -> int | None:
    """How many kernels one call launches; None where there is no GPU."""
    if device.type != "cuda":
        return None
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        synchronize(device)
    return sum(event.device_type == DeviceType.CUDA for event in seen.events() or ())


def memory(device: torch.device, size: str) -> dict[str, Any]:
    """Peak bytes of a step over those of fused AdamW, in copies of the weights."""
    if device.type != "cuda":
        return {"bars": [], "skipped": "peaks are counted on a GPU"}
    peaks = {}
    for name in ("dense", "step", "sr-ste", "asp"):
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated(device)
        optimizer: torch.optim.Optimizer
        if name == "dense":
            optimizer = torch.optim.AdamW(parameters(device, size), fused=True)
        else:
            optimizer = make_optimizer(device, size, recipe=name, switch=1)
        optimizer.step()
        torch.cuda.reset_peak_memory_stats(device)
        for _ in range(2):
            optimizer.step()
        peaks[name] = torch.cuda.max_memory_allocated(device) - before
        del optimizer
    weights = sum(4 * rows * columns for rows, columns in block_shapes(size))
    working = 0.25  # of a copy: room for the gradients and masks of a few layers
    bars = [
        judged(
            f"{size}: copies held by {name}",
            (peak - peaks["dense"]) / weights,
            MEMORY_BAR + working,
        )
        for name, peak in peaks.items()
        if name != "dense"
    ]
    return {"peak bytes": peaks, "weights bytes": weights, "bars": bars}


def block_shapes(size: str) -> list[tuple[int, int]]:
    width, blocks = SIZES[size]
    block = [(3 * width, width), (width, width), (4 * width, width), (width, 4 * width)]
    return block * blocks


def parameters(device: torch.device, size: str) -> list[nn.Parameter]:
    made = []
    for shape in block_shapes(size):
        p = nn.Parameter(torch.randn(shape, device=device) * 0.02)
        p.grad = torch.randn(shape, device=device) * 1e-3
        made.append(p)
    return made


def make_optimizer(device: torch.device, size: str, **options: Any) -> SparseOptimizer:
    group = {"params": parameters(device, size), "pattern": "2:4", "axis": 1}
    return sparse_adamw([group], lr=1e-4, fused=True, **options)


class Block(nn.Module):
    """A block of GPT-2's shape: attention and a feed-forward network of 4 widths."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = width // 64
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.c_fc = nn.Linear(width, 4 * width)
        self.c_out = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """``[batch, length, width]`` in and out."""
        batch, length, width = x.shape
        parts = self.c_attn(self.ln_1(x)).view(batch, length, 3, self.heads, -1)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.c_proj(attended.transpose(1, 2).reshape(batch, length, width))
        x = x + self.c_out(functional.gelu(self.c_fc(self.ln_2(x))))
        return x


class Model(nn.Module):
    """GPT-2's shape: 124 M weights at 768 wide and 12 blocks."""

    def __init__(self, width: int, blocks: int, words: int = 50304) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(words, width), nn.Embedding(1024, width)
        self.h = nn.Sequential(*(Block(width) for _ in range(blocks)))
        self.ln_f = nn.LayerNorm(width)

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores ``[batch, length, words]`` of ``[batch, length]`` tokens."""
        place = torch.arange(tokens.shape[1], device=tokens.device)
        x = self.h(self.wte(tokens) + self.wpe(place))
        return functional.linear(self.ln_f(x), self.wte.weight)


def training_speed(
    device: torch.device, size: str, *, compiled: bool
) -> dict[str, Any]:
    """A whole bf16 training step, dense and learning masks."""
    if compiled and not can_compile(device.type):
        return {"bars": [], "skipped": "no compiler for this device"}
    calls = {
        recipe: training_step(device, size, recipe, compiled=compiled)
        for recipe in ("dense", "step")
    }
    found = medians(calls, device, runs=8)
    times = found["step"] / found["dense"]
    words = "compiled" if compiled else "eager"
    bar = judged(f"{size}: bf16 training step, {words} model", times, TRAINING_BAR)
    return {"size": size, "ms": found, "times dense": times, "bars": [bar]}


def training_step(
    device: torch.device, size: str, recipe: str, *, compiled: bool
) -> Callable[[], object]:
    width, blocks = SIZES[size]
    words, batch, length = (97, 2, 16) if size == "small" else (50304, 8, 1024)
    torch.manual_seed(0)
    model: Any = Model(width, blocks, words).to(device)
    options: dict[str, Any] = {"switch": 1, "fused": True, "lr": 1e-4}
    optimizer = sparse_adamw(model, recipe=recipe, **options)
    run_model = torch.compile(model) if compiled else model
    tokens = torch.randint(words, (batch, length + 1), device=device)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            scores = run_model(tokens[:, :-1])
        loss = functional.cross_entropy(scores.flatten(0, 1), tokens[:, 1:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    step()
    return step
