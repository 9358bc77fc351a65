"""What a TensorRT build log says about sparsity, in both wordings.

8.x lists layers "eligible for sparse math", 10.x and 11.x count layers "eligible to
use sparse tactics". Names appear at VERBOSE only. Logs of trtexec read alike.
"""

import re
from dataclasses import dataclass

from step_cli.formats.tensorrt.layers import (
    EngineLayer,
    names_in,
    onnx_names,
    tactic_name,
)

_OLD = re.compile(
    r"\(Sparsity\) (?P<what>Layers eligible for sparse math|"
    r"TRT inference plan picked sparse implementation for layers):"
    r"[ \t]*(?P<names>[^\n]*)"
)
_NEW = re.compile(
    r"\(Sparsity\) (?P<what>Found|Chose) (?P<n>\d+) layer\(s\) "
    r"(?:eligible to use|using) sparse tactics(?::[ \t]*(?P<names>[^\n]*))?"
)
_LAYER = re.compile(r"(?:^|[\]:] )Name: (?P<name>.*?), LayerType: (?P<rest>.*)")
_TACTIC = re.compile(r"\bTacticName: (?P<tactic>[^,]*), (?:TacticValue|StreamId):")
_SPARSE_WEIGHTS = re.compile(r"\bHasSparseWeights: (?P<flag>\d)")


@dataclass(frozen=True)
class LayerList:
    """A number of layers, and their names where the log gives them."""

    count: int
    names: tuple[str, ...] | None

    def holds(self, node: str) -> bool | None:
        """Whether the ONNX node is among them; None when the log does not say."""
        if self.names is None:
            return None
        return any(node == name or node in names_in(name) for name in self.names)


@dataclass(frozen=True)
class SparsityPair:
    """One tactic-selection pass: which layers could run sparse, which ones do."""

    eligible: LayerList | None
    chosen: LayerList | None


@dataclass(frozen=True)
class BuildLog:
    """The evidence in a build log.

    Attributes:
        pairs: One for each pass, in order; the last one is the verdict.
        layers: The layers at DETAILED verbosity, else empty.
        out_of_memory: Whether tactics may have been skipped for lack of memory.
    """

    pairs: tuple[SparsityPair, ...]
    layers: tuple[EngineLayer, ...]
    out_of_memory: bool


def parse_log(text: str) -> BuildLog:
    """Read a build log, ours or that of trtexec; nothing in it is an error."""
    lines = text.split("\n")  # not splitlines: 0x1E and 0x1F separate names
    return BuildLog(
        pairs=tuple(_pairs(lines)),
        layers=tuple(layer for line in lines if (layer := _layer(line))),
        out_of_memory="out of memory" in text.lower(),
    )


def _pairs(lines: list[str]) -> list[SparsityPair]:
    pairs: list[SparsityPair] = []
    for line in lines:
        match = _OLD.search(line) or _NEW.search(line)
        if match is None:
            continue
        found = _layer_list(match)
        if match["what"] in {"Found", "Layers eligible for sparse math"}:
            pairs.append(SparsityPair(eligible=found, chosen=None))
        elif pairs and pairs[-1].chosen is None:
            pairs[-1] = SparsityPair(pairs[-1].eligible, chosen=found)
        else:
            pairs.append(SparsityPair(eligible=None, chosen=found))
    return pairs


def _layer_list(match: re.Match[str]) -> LayerList:
    names = tuple(name for name in (match["names"] or "").strip().split(", ") if name)
    if "n" not in match.groupdict():
        return LayerList(len(names), names)
    count = int(match["n"])
    # Below VERBOSE the line ends after the count: unknown names, unless there are none.
    return LayerList(count, names if names or not count else None)


def _layer(line: str) -> EngineLayer | None:
    match = _LAYER.search(line)
    if match is None:
        return None
    details, _, metadata = match["rest"].rpartition(", Metadata: ")
    if not details:
        details, metadata = match["rest"], ""
    tactic = _TACTIC.search(details + ", StreamId:")
    sparse = _SPARSE_WEIGHTS.search(details)
    return EngineLayer(
        name=match["name"],
        onnx_names=onnx_names(metadata),
        tactic=tactic_name(tactic["tactic"] if tactic else None),
        has_sparse_weights=None if sparse is None else sparse["flag"] != "0",
    )
