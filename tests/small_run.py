"""A training run of seconds: a small net on scikit-learn's digits."""

from pathlib import Path

from step_cli.config.samples import sample_directory
from step_cli.config.train import TrainConfig, load_config

CONFIG = sample_directory("digits-resnet") / "config.toml"

NET = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 12))
"""


def small_config(folder: Path, *more: str) -> TrainConfig:
    """24 steps whose variance window is 5 steps; AutoSwitch would wait for step 12."""
    net = folder / "net.py"
    net.write_text(NET)
    return load_config(CONFIG, [*overrides(net), *more])


def overrides(net: Path) -> list[str]:
    """What differs from the sample's configuration, for ``--set``."""
    return [
        f"model.source={net}:build", "sparsity.exclude=[]", "train.steps=24",
        "train.batch_size=16", "train.warmup_steps=2", "train.betas=[0.9, 0.8]",
        "train.log_every=2", "train.eval_every=8", "train.checkpoint_every=8",
        "switch.eps=1e-30", "switch.t_min=3", "switch.t_max=11",
    ]  # fmt: skip


def set_words(net: Path, *more: str) -> list[str]:
    """The same as words of a command line."""
    return [word for each in [*overrides(net), *more] for word in ("--set", each)]
