"""What only a GPU can tell: one command for the owner of an NVIDIA card, no network.

    python benchmarks/gpu.py [--device cuda] [--small] [--out DIR]

First checks: masks equal those of the CPU, no hidden synchronisation, rounding, fp16
loss scaling, more than 2^31 weights. Then speed as ratios against peers in one run:
masks beside a device copy, the optimizer step against fused AdamW for the shapes of
GPT-2 small and of a 1.3 B model, and a whole bf16 training step of a model like GPT-2
124M, and inference through `load_compressed` (sparse_inference.py). Writes gpu.json.
With ``--device cpu --small`` everything but the CUDA-only checks runs anywhere, which
the tests do.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from sparse_inference import inference
from torch import Tensor, nn
from torch.nn import functional

from step_cli.core.compiled import can_compile
from step_cli.core.compiled_mask import compiled_keep_mask
from step_cli.core.mask import keep_mask, magnitude_mask
from step_cli.core.optimizer import SparseOptimizer
from step_cli.core.pattern import NMPattern
from step_cli.optimizers import sparse_adamw

SEED = 0
PATTERNS = ("1:2", "2:4", "1:4", "4:8", "1:16", "2:16", "4:32")
SIZES = {  # width and number of blocks
    "gpt2-small": (768, 12),
    "1.3B": (2048, 24),
    "small": (64, 2),
}
STEP_BAR, TRAIN_BAR = 1.15, 1.05  # times fused AdamW, times the dense training step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="tiny sizes, for tests")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    device = torch.device(options.device)
    document = run(device, small=options.small)
    options.out.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=2) + "\n"
    (options.out / "gpu.json").write_text(text)
    print(text)


def run(device: torch.device, *, small: bool) -> dict[str, Any]:
    """All checks and measurements; a check that fails raises."""
    torch.manual_seed(SEED)
    sizes = ["small"] if small else ["gpt2-small", "1.3B"]
    cuda = device.type == "cuda"
    document: dict[str, Any] = {
        "device": torch.cuda.get_device_name(device) if cuda else platform.machine(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "seed": SEED,
        "compiled": can_compile(),
        "checks": checks(device, small=small),
        "mask": mask_speed(device, 256 if small else 8192),
        "steps": {size: step_speed(device, size) for size in sizes},
        "training": training_speed(device, sizes[0]),
        "inference": inference(device, small=small),
        "bars": {"step": STEP_BAR, "training": TRAIN_BAR},
    }
    if cuda:
        document["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return document


# ------------------------------------------------------------------------------ checks


def checks(device: torch.device, *, small: bool) -> dict[str, str]:
    """Every check by name; the value says what was done."""
    done = {
        "masks equal those of the CPU": same_masks(device),
        "the update is that of the CPU within 1e-5": same_update(device),
        "fp16 loss scaling": loss_scaling(device),
    }
    if device.type == "cuda":
        done["no synchronisation before the first decision"] = no_sync(device)
        if not small:
            done["more than 2^31 weights"] = huge(device)
    return done


def same_masks(device: torch.device) -> str:
    """Random, tied and constant weights; every pattern, along both axes."""
    generator = torch.Generator().manual_seed(SEED)
    ties = torch.randint(-2, 3, (192, 192), generator=generator).float()
    for weight in (
        torch.randn(192, 192, generator=generator),
        ties,
        torch.ones(192, 192),
    ):
        for text in PATTERNS:
            pattern = NMPattern.parse(text)
            for axis in (0, 1):
                expected = magnitude_mask(weight, pattern, axis)
                moved = weight.to(device)
                found = [magnitude_mask(moved, pattern, axis)]
                if can_compile():
                    found.append(compiled_keep_mask(moved, pattern, axis))
                assert all(torch.equal(mask.cpu(), expected) for mask in found), text
    return f"{len(PATTERNS)} patterns, ties too"


def same_update(device: torch.device) -> str:
    """Six STEP steps with the switch in the middle, here and on the CPU."""
    results = []
    for where in (torch.device("cpu"), device):
        torch.manual_seed(SEED)
        model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)).to(where)
        optimizer = sparse_adamw(model, switch=3, lr=1e-3)
        generator = torch.Generator().manual_seed(SEED)
        for _ in range(6):
            inputs = torch.randn(32, 64, generator=generator).to(where)
            model(inputs).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        with optimizer.dense_weights():
            results.append([p.detach().cpu().clone() for p in model.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    return "6 steps, switch at 3"


def loss_scaling(device: torch.device) -> str:
    """fp16 autocast with a GradScaler; an overflow skips the step, not the training."""
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)).to(device)
    optimizer = sparse_adamw(model, switch=2, lr=1e-3)
    scaler = torch.amp.GradScaler(device.type, init_scale=2.0**40)
    kind = torch.float16 if device.type == "cuda" else torch.bfloat16
    for _ in range(40):
        with torch.autocast(device.type, kind):
            loss = model(torch.randn(16, 64, device=device)).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    assert optimizer.phase == "mask-learning"
    assert all(bool(p.isfinite().all()) for p in model.parameters())
    return f"{optimizer.steps_taken} of 40 steps taken"


def no_sync(device: torch.device) -> str:
    """CUDA raises on any synchronisation while AutoSwitch cannot fire yet."""
    optimizer = make_optimizer(device, "small", total_steps=10_000)
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return "5 steps under set_sync_debug_mode('error')"


def huge(device: torch.device) -> str:
    """Indices beyond 2^31: the last groups are masked as the first."""
    rows = 2**31 // 4096 + 8
    weight = torch.ones(rows, 4096, device=device, dtype=torch.float16)
    weight[:, ::4] = 2.0
    mask = keep_mask(weight, NMPattern(1, 4), 1)
    assert bool(mask[-8:].view(-1, 4)[:, 0].all())
    assert not bool(mask[-8:].view(-1, 4)[:, 1:].any())
    return f"{weight.numel():,} weights"


# ------------------------------------------------------------------------------- speed


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


def mask_speed(device: torch.device, width: int) -> dict[str, Any]:
    """Milliseconds of a mask by pattern and axis, beside a copy of the same weights."""
    weight = torch.randn(width, width, device=device)
    calls: dict[str, Callable[[], object]] = {"copy": weight.clone}
    for text in PATTERNS:
        for axis in (0, 1):
            pattern = NMPattern.parse(text)
            mask = compiled_keep_mask if can_compile() else keep_mask
            calls[f"{text} axis {axis}"] = lambda m=mask, p=pattern, a=axis: m(
                weight, p, a
            )
    return {"shape": list(weight.shape), "ms": medians(calls, device)}


def block_shapes(size: str) -> Iterable[tuple[int, int]]:
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


def step_speed(device: torch.device, size: str) -> dict[str, Any]:
    """Milliseconds of one optimizer step by phase, and times fused AdamW."""
    adamw = torch.optim.AdamW(parameters(device, size), lr=1e-4, fused=True)
    calls: dict[str, Callable[[], object]] = {"AdamW, fused": adamw.step}
    calls["precondition"] = make_optimizer(device, size, switch=10**9).step
    calls["with AutoSwitch"] = make_optimizer(device, size, total_steps=10**9).step
    for compiled in (False, True) if can_compile() else (False,):
        learning = make_optimizer(device, size, switch=1, compile=compiled)
        learning.step()
        name = f"mask learning, {'compiled' if compiled else 'eager'}"
        calls[name] = learning.step
    found = medians(calls, device)
    peer = found["AdamW, fused"]
    times = {name: value / peer for name, value in found.items()}
    return {"ms": found, "times fused AdamW": times}


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


def training_speed(device: torch.device, size: str) -> dict[str, Any]:
    """Milliseconds of a whole bf16 training step, dense and learning masks."""
    calls: dict[str, Callable[[], object]] = {}
    for compiled in (False, True) if can_compile() else (False,):
        for recipe, switch in (("dense", None), ("step", 1)):
            name = f"{recipe}{', compiled model' if compiled else ''}"
            calls[name] = training_step(device, size, recipe, switch, compiled)
    found = medians(calls, device, runs=5)
    times = {
        name: value / found[name.replace("step", "dense")]
        for name, value in found.items()
    }
    return {"size": size, "ms": found, "times dense": times}


def training_step(
    device: torch.device, size: str, recipe: str, switch: int | None, compiled: bool
) -> Callable[[], object]:
    width, blocks = SIZES[size]
    tiny = size == "small"
    words, batch, length = (97, 2, 16) if tiny else (50304, 8, 1024)
    model: Any = Model(width, blocks, words).to(device)
    options: dict[str, Any] = {"switch": switch, "fused": True, "lr": 1e-4}
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


if __name__ == "__main__":
    main()
