"""Sound checkpoints, to be made unsound by the rows, and their parts."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save

NAME = "fc.weight"


def sparse(rows: int = 8, columns: int = 16) -> np.ndarray:
    """2:4 along axis 1 and along no other."""
    rng = np.random.default_rng(0)
    kept = rng.random((rows, columns // 4, 4)).argsort(-1).argsort(-1) < 2
    values = rng.uniform(1, 2, kept.shape)
    return np.where(kept, values, 0).astype(np.float32).reshape(rows, columns)


def broken(rows: int = 8, columns: int = 16) -> np.ndarray:
    """The same with one weight more, in the group at [3, 4]."""
    array = sparse(rows, columns)
    group = array[3, 4:8]
    group[np.flatnonzero(group == 0)[0]] = 1
    return array


def put(path: Path, array: np.ndarray | None = None, name: str = NAME) -> Path:
    """A safetensors file with one weight."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(save({name: sparse() if array is None else array}))
    return path


def put_bytes(path: Path, data: bytes) -> Path:
    """A file of any content."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def put_json(path: Path, document: object) -> Path:
    """A JSON file."""
    return put_bytes(path, json.dumps(document).encode())


def sharded(folder: Path, weight_map: object = None) -> Path:
    """A directory with two shards and their index."""
    put(folder / "s-1.safetensors", name="a.weight")
    put(folder / "s-2.safetensors", name="b.weight")
    shards = {"a.weight": "s-1.safetensors", "b.weight": "s-2.safetensors"}
    index = {"metadata": {}, "weight_map": weight_map or shards}
    put_json(folder / "model.safetensors.index.json", index)
    return folder


def plan_of(*names: str, schema: str = "step-cli/plan/1") -> dict[str, object]:
    """A plan that promises 2:4 along axis 1."""
    layers = {name: {"pattern": "2:4", "axis": 1} for name in names}
    return {"schema": schema, "layers": layers}
