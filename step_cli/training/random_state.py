"""The random number generators of a process: seeded, saved and restored."""

import random

import numpy as np
import torch
from torch import Tensor


def seed_all(seed: int, rank: int = 0) -> None:
    """Seed every generator; each process gets numbers of its own."""
    if rank:
        seed = int(np.random.SeedSequence([seed, rank]).generate_state(1)[0])
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def random_states(device: torch.device) -> dict[str, Tensor]:
    """The state of torch's generators, on the host and on ``device``, and of others."""
    _, numbers, gauss = random.getstate()
    _, keys, *rest = np.random.get_state(legacy=True)
    states = {
        "cpu": torch.get_rng_state(),
        "python": torch.tensor(numbers),
        "python-gauss": torch.tensor(
            [float("nan") if gauss is None else gauss], dtype=torch.float64
        ),
        "numpy": torch.from_numpy(np.asarray(keys, np.int64)),
        "numpy-rest": torch.tensor(rest, dtype=torch.float64),
    }
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def restore_random_states(states: dict[str, Tensor], device: torch.device) -> None:
    """Go on with the states of :func:`random_states`."""
    torch.set_rng_state(states["cpu"])
    gauss = float(states["python-gauss"])
    numbers = tuple(states["python"].tolist())
    random.setstate((3, numbers, None if gauss != gauss else gauss))
    place, has_gauss, cached = states["numpy-rest"].tolist()
    keys = states["numpy"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, int(place), int(has_gauss), cached))
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["cuda"], device)
