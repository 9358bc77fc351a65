"""The layers of a TensorRT engine, from the JSON of 8.5, 10.x and 11.x.

`trtexec --exportLayerInfo` and the engine inspector write it. With layer names only
(the default verbosity) a layer is a string, so everything but its name is unknown.
"""

import json
import re
from dataclasses import dataclass
from typing import Any

from step_cli.errors import InputError

SPARSE_TACTIC = re.compile("sparse|sptensor|spgemm|spmma|sp_mma", re.IGNORECASE)
# Names are separated by 0x1E (10.x JSON), 0x1F (RTX) or nothing (10.x text).
ONNX_NAME = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f\[]|$)")
STUB = "__myelin_CASK_STUB"  # a kernel that is made later, on the user's GPU


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine; what the source does not say is None.

    Attributes:
        name: The engine's own name of the layer.
        onnx_names: The ONNX nodes that went into it.
        tactic: Name of the kernel that was picked.
        has_sparse_weights: Whether the weights fit 2:4; no proof of a sparse kernel.
    """

    name: str
    onnx_names: tuple[str, ...]
    tactic: str | None
    has_sparse_weights: bool | None

    @property
    def runs_sparse(self) -> bool | None:
        """Whether its tactic uses 2:4; judged by the tactic, never by other names."""
        return None if self.tactic is None else bool(SPARSE_TACTIC.search(self.tactic))


def onnx_names(metadata: str) -> tuple[str, ...]:
    """ONNX node names of a layer's metadata, in order."""
    return tuple(ONNX_NAME.findall(metadata.strip()))


def tactic_name(text: str | None) -> str | None:
    """The tactic, or None for an empty name or a stub, which are no evidence."""
    return None if text is None or text.strip() in {"", STUB} else text.strip()


def parse_layers(text: str) -> list[EngineLayer]:
    """Read the layer information of an engine.

    Raises:
        InputError: The text is not such a document.
    """
    try:
        document = json.loads(text)
        return [_layer(entry) for entry in document["Layers"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            "not a layer information file; write one with trtexec --exportLayerInfo"
        ) from None


def _layer(entry: str | dict[str, Any]) -> EngineLayer:
    if isinstance(entry, str):
        return EngineLayer(entry, names_in(entry), None, None)
    sparse = entry.get("HasSparseWeights")
    return EngineLayer(
        name=str(entry["Name"]),
        onnx_names=onnx_names(str(entry.get("Metadata", ""))),
        tactic=tactic_name(entry.get("TacticName")),
        has_sparse_weights=None if sparse is None else bool(int(sparse)),
    )


def names_in(layer: str) -> tuple[str, ...]:
    """The nodes a fused layer name is made of: ``conv1 + relu1``."""
    return tuple(part.strip() for part in layer.split(" + ") if part.strip())
