"""The numbers of stored tensors: N:M along what a product sums over, or not."""

import random

import numpy as np
from formats.onnx.random_graphs.example import Example
from formats.onnx.random_graphs.values import Array, Stored


def fill(example: Example, rng: random.Random) -> None:
    """Give each stored tensor its numbers."""
    stored = example.stored
    keep = {tensor.name: np.ones(tensor.shape, bool) for tensor in stored}
    taken = {tensor.name: np.zeros(tensor.shape, bool) for tensor in stored}
    for placed in example.placed:
        for number, operand in enumerate(placed.product.operands):
            kept = _n_of_m(operand.lanes(), *example.pattern, rng)
            for path in placed.paths(number):
                name, on = path.stored.name, path.ids >= 0
                taken[name] |= on
                keep[name] &= ~on | kept[path.ids]
    for tensor in stored:
        way = rng.choice(["kept", "kept", "kept", "broken", "broken", "axis", "dense"])
        mask = keep[tensor.name]
        if way == "broken":
            gone = np.argwhere(~mask & taken[tensor.name])
            for index in rng.sample(
                range(len(gone)), min(len(gone), rng.randint(1, 2))
            ):
                mask[tuple(gone[index])] = True
        elif way == "axis":
            mask = _along(tensor.shape, rng.randrange(len(tensor.shape)))
        elif way == "dense":
            mask = np.ones(tensor.shape, bool)
        tensor.data = np.where(mask, _numbers(tensor, rng), _zeros(tensor, rng))


def _n_of_m(lanes: Array, n: int, m: int, rng: random.Random) -> Array:
    """Which elements of an operand are kept; a rest of fewer than M is."""
    kept = np.ones(lanes.size, bool)
    for first in range(0, lanes.shape[1] - m + 1, m):
        for lane in lanes[:, first : first + m]:
            kept[rng.sample(lane.tolist(), m - n)] = False
    return kept


def _along(shape: tuple[int, ...], axis: int) -> Array:
    mask = np.ones(shape, bool)
    mask[(slice(None),) * axis + (slice(0, None, 2),)] = False
    return mask


def _numbers(tensor: Stored, rng: random.Random) -> Array:
    """Numbers that are not zero, which the dtype and a quantization hold exactly."""
    count = int(np.prod(tensor.shape))
    if not tensor.is_codes:
        some = [
            rng.choice([-1, 1]) * rng.choice([0.5, 0.75, 1, 1.5]) for _ in range(count)
        ]
        return np.reshape(some, tensor.shape)
    low, high = (0, 255) if tensor.dtype == "uint8" else (-128, 127)
    codes = np.reshape([rng.randint(low, high) for _ in range(count)], tensor.shape)
    beside = np.where(tensor.zero == high, tensor.zero - 1, tensor.zero + 1)
    return np.where(codes == tensor.zero, beside, codes).astype(np.float64)


def _zeros(tensor: Stored, rng: random.Random) -> Array:
    """The codes that mean zero; floats may be -0.0."""
    if tensor.is_codes or rng.random() < 0.7:
        return tensor.zero.astype(np.float64)
    return np.full(tensor.shape, -0.0)
