"""Small networks, and a check that whatever may be permuted changes no output."""

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from torch.nn import functional

from step_cli.channels.channel_sets import ChannelSet, find_channel_sets
from step_cli.channels.graph import Network
from step_cli.channels.orders import orders_of, reordered
from step_cli.channels.torch_graph import Traced, trace
from step_cli.formats.checkpoint import Checkpoint
from step_cli.formats.files.temporary import ArraysOnDisk
from step_cli.formats.open import open_checkpoint
from step_cli.nm.pattern import NMPattern, NMSpec, Plan
from step_cli.nm.selection import Selection

TWO_FOUR = NMPattern(2, 4)


def spread(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights whose rows and columns differ, so that their order matters."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for value in module.state_dict().values():
            if value.dim() > 1:
                value.mul_(torch.rand(value.shape[-1]) * 3)
                value.mul_(torch.rand(value.shape[:1] + (1,) * (value.dim() - 1)) * 3)
            elif value.is_floating_point():
                value.add_(torch.rand_like(value) * 0.5)
    return module.eval()


def shuffled(
    network: Network, checkpoint: Checkpoint, plan: Plan, seed: int = 0
) -> tuple[list[ChannelSet], Checkpoint]:
    """The channel sets of a network, and the checkpoint with each in a random order."""
    sets, _ = find_channel_sets(network.graph, network.tensors, plan)
    random = np.random.default_rng(seed)
    found = {}
    for channels in sets:
        sizes = tuple(leaf.size for leaf in channels.within)
        table = np.empty((*sizes, channels.leaf.size), np.int64)
        for at in np.ndindex(sizes):
            table[at] = random.permutation(channels.leaf.size)
        found[channels.leaf] = channels, table
    orders = {name: orders_of(axes, found) for name, axes in network.tensors.items()}
    with closing(ArraysOnDisk()) as arrays:
        return sets, reordered(checkpoint, orders, arrays)


def plan_of(checkpoint: Checkpoint, pattern: NMPattern = TWO_FOUR) -> Plan:
    """What `prune` would select by itself."""
    chosen = Selection(pattern=pattern).choose(checkpoint.tensors)
    return {layer.tensor.name: layer.spec for layer in chosen.layers}


def saved(module: nn.Module, folder: Path) -> Checkpoint:
    save_model(module, str(folder / "net.safetensors"))
    return open_checkpoint(folder / "net.safetensors")


def traced(
    module: nn.Module, **examples: Tensor
) -> tuple[list[ChannelSet], dict[str, str]]:
    """Channel sets of a module, and why weights are in none; all 2:4 along axis 1."""
    found: Traced = trace(module.eval(), examples)
    plan = {
        name: NMSpec(TWO_FOUR, 1)
        for name, value in module.state_dict().items()
        if value.dim() > 1
    }
    return find_channel_sets(found.graph, found.parameters, plan)


def changed_outputs(
    module: nn.Module, examples: Mapping[str, Tensor], folder: Path, seed: int = 0
) -> float:
    """How far outputs move when every channel set is put in a random order."""
    checkpoint = saved(module, folder)
    found = trace(module, examples)
    names = {tensor.name for tensor in checkpoint.tensors}
    tensors = {n: v for n, v in found.parameters.items() if n in names}
    network = Network(found.graph, tensors, lambda now: [])
    sets, now = shuffled(network, checkpoint, plan_of(checkpoint), seed)
    assert sets
    with torch.no_grad():
        before = module(**examples)
        state = {t.name: torch.from_numpy(t.read().copy()) for t in now.tensors}
        moved = any(
            not torch.equal(state[name], value)
            for name, value in module.state_dict().items()
            if name in state
        )
        assert moved
        module.load_state_dict(state, strict=False)
        after = module(**examples)
    return float((before - after).abs().max() / before.abs().max())


class ConvNet(nn.Module):
    """Residual blocks, norms per channel and per group, grouped convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.conv1 = nn.Conv2d(16, 24, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(2, 24)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.act = nn.PReLU(24)
        self.grouped = nn.Conv2d(24, 32, 1, groups=2)
        self.conv2 = nn.Conv2d(32, 16, 1)
        self.up = nn.ConvTranspose2d(16, 16, 2, 2)
        self.head = nn.Linear(16 * 4, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(x)), inplace=True)
        inner = self.act(self.depthwise(self.norm1(self.conv1(x))))
        x = x + self.conv2(functional.silu(self.grouped(inner)))
        x = functional.max_pool2d(torch.cat([self.up(x), self.up(x) * 2], 1), 2)
        x = functional.adaptive_avg_pool2d(x[:, 16:] - x[:, :16], 2)
        return self.head(x.flatten(1))


class Attention(nn.Module):
    """nn.MultiheadAttention with its projections in one weight, and a gated MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 32)
        self.attention = nn.MultiheadAttention(32, 4, batch_first=True)
        self.norm = nn.LayerNorm(32)
        self.gates = nn.Linear(32, 96)
        self.down = nn.Linear(48, 32)
        self.out = nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        gate, up = self.gates(self.norm(x)).chunk(2, -1)
        return self.out(x + self.down(functional.silu(gate) * up))
