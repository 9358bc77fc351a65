"""What must hold on a GPU as on the CPU; part of gpu.py, and of the tests.

Each check raises where it fails, and says what was done where it holds. Those in
`ANYWHERE` run on a CPU too, which the tests do; those in `CUDA_ONLY` need a GPU.
"""

import itertools
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from step_cli.nm.pattern import NMPattern
from step_cli.optim.compiled import can_compile
from step_cli.optim.compiled_mask import compiled_keep_mask, compiled_project
from step_cli.optim.mask import keep_mask, magnitude_mask, masked
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.recipes.sparse_adamw import sparse_adamw

SEED = 0
MANY_M = (*range(1, 33), 48, 64, 65, 128)
# Of compiled masks fewer, as each pattern, axis and dtype compiles for seconds.
COMPILED = (  # M, axes, dtypes of the parameter
    (4, (0, 1), (torch.float32, torch.bfloat16)),
    (16, (1,), (torch.float32,)),
)
MORE_COMPILED = tuple((m, (1,), (torch.float32,)) for m in (2, 8, 32))

Check = Callable[[torch.device], str]


def same_masks(device: torch.device) -> str:
    """Eager masks of random, heavily tied and constant weights; every M, both axes."""
    count = 0
    for m in MANY_M:
        for weight in weights_of(m):
            moved = weight.to(device)
            for n in {1, (m + 1) // 2, m - 1, m} - {0}:
                for axis in (0, 1):
                    expected = magnitude_mask(weight, NMPattern(n, m), axis)
                    found = magnitude_mask(moved, NMPattern(n, m), axis)
                    assert torch.equal(found.cpu(), expected), f"{n}:{m} axis {axis}"
                    count += 1
    return f"{count} masks, M to {max(MANY_M)}"


def same_compiled_masks(device: torch.device) -> str:
    """Compiled masks and projections, into fp32 and bf16 parameters."""
    if not can_compile(device.type):
        return "no compiler for this device"
    count = 0
    for m, axes, dtypes in COMPILED + (MORE_COMPILED if device.type == "cuda" else ()):
        pattern = NMPattern(max(1, m // 2), m)
        for weight, axis in itertools.product(weights_of(m), axes):
            moved = weight.to(device)
            expected = magnitude_mask(weight, pattern, axis)
            found = compiled_keep_mask(moved, pattern, axis)
            assert torch.equal(found.cpu(), expected), f"{pattern} axis {axis}"
            for dtype in dtypes:
                out = torch.full_like(moved, 7.0, dtype=dtype)
                compiled_project(out, moved, pattern, axis)
                kept = masked(weight, expected).to(dtype)
                assert torch.equal(out.cpu(), kept), f"{pattern} axis {axis} {dtype}"
            count += 1
    return f"{count} masks and their projections"


def weights_of(m: int) -> list[Tensor]:
    """Random, tied and constant weights whose both axes divide into groups of M."""
    generator = torch.Generator().manual_seed(SEED)
    shape = (3 * m, 5 * m)
    ties = torch.randint(-2, 3, shape, generator=generator).float()
    return [torch.randn(shape, generator=generator), ties, torch.ones(shape)]


def same_update(device: torch.device) -> str:
    """Six STEP steps with the switch in the middle, here and on the CPU."""
    results = []
    for where in (torch.device("cpu"), device):
        model, optimizer = small_training(where, switch=3)
        train(model, optimizer, 6)
        with optimizer.dense_weights():
            results.append([p.detach().cpu().clone() for p in model.parameters()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    return "6 steps, switch at 3"


def equals_adamw(device: torch.device) -> str:
    """Before the switch the weights are bit for bit those of fused AdamW."""
    model, optimizer = small_training(device, switch=100)
    twin, _ = small_training(device, switch=100)
    train(model, optimizer, 5)
    train(twin, torch.optim.AdamW(twin.parameters(), lr=1e-3, fused=True), 5)
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(one, other)
    return "5 steps"


def loss_scaling(device: torch.device) -> str:
    """fp16 autocast with a GradScaler; an overflow skips the step, not the training."""
    model, optimizer = small_training(device, switch=2)
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


def no_recompiles(device: torch.device) -> str:
    """Steps with other learning rates, and tensors of other sizes, compile nothing."""
    from torch._dynamo.utils import counters

    if not can_compile(device.type):
        return "no compiler for this device"

    def made(rows: int) -> SparseOptimizer:
        p = nn.Parameter(torch.randn(rows, 64, device=device))
        p.grad = torch.ones_like(p)
        group = {"params": [p], "pattern": "2:4", "axis": 1}
        return sparse_adamw([group], switch=1, lr=1e-3, fused=True, compile=True)

    for rows in (24, 32):
        optimizer = made(rows)
        for _ in range(3):
            optimizer.step()
    before = counters["stats"]["unique_graphs"]
    for rows in (40, 48, 56):
        optimizer = made(rows)
        for step in range(4):
            optimizer.param_groups[0]["lr"] = 1e-3 / (1 + step)
            optimizer.step()
    compiled = counters["stats"]["unique_graphs"] - before
    assert compiled == 0, f"{compiled} more graphs"
    return "12 steps of 3 sizes"


def sharded(device: torch.device) -> str:
    """FSDP2 in one process: mixed precision, a mesh for HSDP, CPU offload."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import (
        CPUOffloadPolicy,
        MixedPrecisionPolicy,
        fully_shard,
    )

    cuda = device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("LOCAL_RANK", "0")
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            init_method=f"file://{Path(folder) / 'meeting'}",
            rank=0,
            world_size=1,
        )
        try:
            line = init_device_mesh(device.type, (1,))
            square = init_device_mesh(
                device.type, (1, 1), mesh_dim_names=("replicate", "shard")
            )
            half = MixedPrecisionPolicy(torch.bfloat16, torch.float32)
            ways: dict[str, dict[str, Any]] = {
                "mixed precision": {"mesh": line, "mp_policy": half},
                "HSDP": {"mesh": square},
            }
            if cuda:
                ways["CPU offload"] = {
                    "mesh": line,
                    "offload_policy": CPUOffloadPolicy(),
                }
            for options in ways.values():
                sharded_training(device, fully_shard, options)
        finally:
            dist.destroy_process_group()
    return ", ".join(ways)


def sharded_training(
    device: torch.device, fully_shard: Callable[..., Any], options: dict[str, Any]
) -> None:
    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)).to(device)
    fully_shard(model, **options)
    optimizer = sparse_adamw(model, switch=2, lr=1e-3)
    train(model, optimizer, 5, device)
    for p, _ in optimizer.sparse_parameters():
        groups = p.full_tensor().view(-1, 4)
        assert int(groups.ne(0).sum(1).max()) == 2


def no_sync(device: torch.device) -> str:
    """CUDA raises on any synchronisation while AutoSwitch cannot fire yet."""
    parameters = [nn.Parameter(torch.randn(64, 64, device=device)) for _ in range(3)]
    group = {"params": parameters, "pattern": "2:4", "axis": 1}
    for options in ({"total_steps": 10_000}, {"recipe": "ste"}, {"recipe": "sr-ste"}):
        optimizer = sparse_adamw([group], lr=1e-4, fused=True, **options)  # type: ignore[arg-type]
        for p in parameters:
            p.grad = torch.ones_like(p)
        optimizer.step()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(5):
                optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return "5 steps of STEP, STE and SR-STE under set_sync_debug_mode('error')"


def told_late(device: torch.device) -> str:
    """A gradient that is not finite is said, though no step waits for the device."""
    from step_cli.errors import NonFiniteError

    p = nn.Parameter(torch.randn(64, 64, device=device))
    group = {"params": [p], "pattern": "2:4", "axis": 1}
    optimizer = sparse_adamw([group], recipe="ste", lr=1e-4, fused=True)
    p.grad = torch.full_like(p, torch.nan)
    for step in range(1, 10):
        try:
            optimizer.step()
        except NonFiniteError:
            return f"said at step {step}"
        torch.cuda.synchronize(device)
    raise AssertionError("9 steps with NaN, and nothing said")


def huge(device: torch.device) -> str:
    """Indices beyond 2^31: the last groups are masked as the first."""
    rows = 2**31 // 4096 + 8
    weight = torch.ones(rows, 4096, device=device, dtype=torch.float16)
    weight[:, ::4] = 2.0
    mask = keep_mask(weight, NMPattern(1, 4), 1)
    assert bool(mask[-8:].view(-1, 4)[:, 0].all())
    assert not bool(mask[-8:].view(-1, 4)[:, 1:].any())
    return f"{weight.numel():,} weights"


def small_training(
    device: torch.device, switch: int
) -> tuple[nn.Module, SparseOptimizer]:
    torch.manual_seed(SEED)
    model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 8)).to(device)
    return model, sparse_adamw(model, switch=switch, lr=1e-3, fused=True)


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: int,
    device: torch.device | None = None,
) -> None:
    where = device or next(model.parameters()).device
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(steps):
        inputs = torch.randn(32, 64, generator=generator).to(where)
        model(inputs).float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


ANYWHERE: dict[str, Check] = {
    "masks equal those of the CPU": same_masks,
    "compiled masks equal those of the CPU": same_compiled_masks,
    "the update is that of the CPU within 1e-5": same_update,
    "the precondition phase is fused AdamW bit for bit": equals_adamw,
    "fp16 loss scaling": loss_scaling,
    "no recompilation": no_recompiles,
    "FSDP2 in one process": sharded,
}
CUDA_ONLY: dict[str, Check] = {
    "no synchronisation before the first decision": no_sync,
    "NaN is told without synchronisation": told_late,
    "more than 2^31 weights": huge,
}
