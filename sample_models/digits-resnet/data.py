"""scikit-learn's digits: 1,797 real scans of handwritten digits, 8x8 pixels."""

import torch
from sklearn.datasets import load_digits

from step_cli.config.data import DataSection
from step_cli.data.batch import Dataset, TensorSplit

HELD_OUT = 5  # every fifth image is held out


def load(section: DataSection) -> Dataset:
    """Images ``[n, 1, 8, 8]`` from 0 to 1, labels 0 to 9; 1,437 to train on."""
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 16
    labels = torch.tensor(digits.target, dtype=torch.int64)
    held_out = torch.arange(len(labels)) % HELD_OUT == 0
    return Dataset(
        train=TensorSplit({"pixels": images[~held_out]}, labels[~held_out]),
        held_out=TensorSplit({"pixels": images[held_out]}, labels[held_out]),
    )
