"""A small model of the user's, and `export` of it as the tests call it."""

from pathlib import Path
from typing import Any

from step_cli.commands.export import run as export
from step_cli.config.commands import ExportConfig
from step_cli.nm.pattern import NMPattern, NMSpec, Plan
from step_cli.reports import ExportReport

NET = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(16, 32)
        self.head = torch.nn.Linear(32, 8)

    def forward(self, x):
        return self.head(torch.relu(self.up(x)))

def build():
    torch.manual_seed(0)
    return Net()
"""
PLAN: Plan = {
    "up.weight": NMSpec(NMPattern(2, 4), 1),
    "head.weight": NMSpec(NMPattern(2, 4), 1),
}
INPUT = ["x:float32:2x4x16"]


def run(net: Path, out: Path, to: str = "onnx", **options: Any) -> ExportReport:
    given = {
        "checkpoint": net / "m.safetensors",
        "model": f"{net / 'net.py'}:build",
        "input": INPUT,
    } | options
    return export.run(
        ExportConfig(out=out, to=to, **{k: v for k, v in given.items() if v})
    )


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def save_family(folder: Path, family: str) -> None:
    """A small model of transformers with random weights, 2:4 but for its ends."""
    import torch
    import transformers

    from step_cli.optim.mask import nm_mask

    sizes = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 32}
    layers = {
        f"{side}_{size}": value
        for side in ("encoder", "decoder")
        for size, value in (("layers", 1), ("attention_heads", 2), ("ffn_dim", 64))
    }
    tokens = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
    torch.manual_seed(0)
    t = transformers
    models = {
        "gpt2": lambda: t.GPT2LMHeadModel(
            t.GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=64, n_positions=32)
        ),
        "vit": lambda: t.ViTForImageClassification(
            t.ViTConfig(**sizes, intermediate_size=64, image_size=16, patch_size=4)
        ),
        "bert": lambda: t.BertForSequenceClassification(
            t.BertConfig(**sizes, intermediate_size=64, vocab_size=64)
        ),
        "marian": lambda: t.MarianMTModel(
            t.MarianConfig(
                d_model=32, vocab_size=64, forced_eos_token_id=1, **layers, **tokens
            )
        ),
        "resnet": lambda: t.ResNetForImageClassification(
            t.ResNetConfig(embedding_size=8, hidden_sizes=[16], depths=[1])
        ),
        "clap": lambda: t.ClapAudioModelWithProjection(
            t.ClapAudioConfig(
                spec_size=64,
                hidden_size=32,
                patch_embeds_hidden_size=8,
                depths=[1],
                num_attention_heads=[2],
                num_mel_bins=16,
                projection_dim=8,
            )
        ),
    }
    model = models[family]()
    with torch.no_grad():
        for module in model.modules():
            axis = {"Linear": 1, "Conv1D": 0, "Conv2d": 1}.get(type(module).__name__)
            if axis is not None and module.weight.shape[axis] % 4 == 0:
                module.weight.mul_(nm_mask(module.weight.abs(), "2:4", axis))
    model.save_pretrained(folder)
