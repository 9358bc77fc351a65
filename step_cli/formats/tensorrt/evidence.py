"""How we know which kernel a layer runs: layer information, build logs, and a verdict.

Three sources are read. The engine inspector and `trtexec --exportLayerInfo` write JSON,
in three generations (8.5, 10.x, 11.x). A build log, ours or that of trtexec, lists the
layers as text, and has lines on sparsity in two wordings: 8.x lists layers
"eligible for sparse math", 10.x and 11.x count layers "eligible to use sparse tactics";
names appear at VERBOSE only.

A verdict is True, False or None; None means that nothing was seen. Several passes
may stand in a log; the last one is judged.
"""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

from step_cli.errors import InputError

SparseWeights = Literal["used", "permitted", "ignored"]

SPARSE_TACTIC = re.compile("sparse|sptensor|spgemm|spmma|sp_mma", re.IGNORECASE)
# Names are separated by 0x1E (10.x JSON), 0x1F (RTX) or nothing (10.x text).
ONNX_NAME = re.compile(r"\[ONNX Layer: (.*?)\](?=[\x1e\x1f\[]|$)")
STUB = "__myelin_CASK_STUB"  # a kernel that is made later, on the user's GPU
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
class EngineLayer:
    """One layer of an engine; what the source lacks is None.

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
        return [_layer_of_json(entry) for entry in document["Layers"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(
            "not a layer information file; write one with trtexec --exportLayerInfo"
        ) from None


def _layer_of_json(entry: str | dict[str, Any]) -> EngineLayer:
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


@dataclass(frozen=True)
class LayerList:
    """A number of layers, and their names where the log gives them."""

    count: int
    names: tuple[str, ...] | None

    def holds(self, node: str) -> bool | None:
        """Whether the ONNX node is among them; None when the log has no names."""
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
        layers=tuple(layer for line in lines if (layer := _layer_of_line(line))),
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


def _layer_of_line(line: str) -> EngineLayer | None:
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


@dataclass(frozen=True)
class Evidence:
    """What was seen of one ONNX node in the engine; None: nothing was."""

    eligible: bool | None = None
    chosen: bool | None = None
    tactic: str | None = None


def evidence_of(log: BuildLog, node: str) -> Evidence:
    """Look one ONNX node up in a build log."""
    layers = [layer for layer in log.layers if node in layer.onnx_names]
    last = log.pairs[-1] if log.pairs else None
    eligible = last.eligible.holds(node) if last and last.eligible else None
    chosen = last.chosen.holds(node) if last and last.chosen else None
    if eligible is None:
        eligible = _any(layer.has_sparse_weights for layer in layers)
    tactic = _tactic(layers)
    if chosen is None or any(layer.runs_sparse for layer in layers):
        chosen = _any(layer.runs_sparse for layer in layers)
    # What was chosen was eligible, even where only the tactic shows it.
    return Evidence(True if chosen else eligible, chosen, tactic)


def sparse_weights(log: BuildLog, *, honoured: bool) -> SparseWeights:
    """What became of the permission to use sparse weights, for the whole engine."""
    if not honoured:
        return "ignored"
    chosen = log.pairs[-1].chosen if log.pairs else None
    if (chosen and chosen.count) or any(layer.runs_sparse for layer in log.layers):
        return "used"
    return "permitted"


def _any(claims: Iterable[bool | None]) -> bool | None:
    """True if one is, else None if one is unknown or there is none, else False."""
    seen = list(claims)
    if True in seen:
        return True
    return None if None in seen or not seen else False


def _tactic(layers: list[EngineLayer]) -> str | None:
    """The tactic of the layer, the sparse one first."""
    named = [layer for layer in layers if layer.tactic]
    named.sort(key=lambda layer: not layer.runs_sparse)
    return named[0].tactic if named else None
