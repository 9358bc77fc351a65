"""Training data: what ``[data]`` names, read from local paths, in batches by name."""

from step_cli.data.batch import IGNORED, Batch, Dataset, Split, TensorSplit
from step_cli.data.load import load_data
from step_cli.data.order import batch_at, batches_of

__all__ = [
    "IGNORED",
    "Batch",
    "Dataset",
    "Split",
    "TensorSplit",
    "batch_at",
    "batches_of",
    "load_data",
]
