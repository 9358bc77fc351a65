"""What commands return: data that `render` shows, and `--json` dumps as it is.

One module for each command, imported when one of its names is first used: a check
starts without the reports of training and export.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from step_cli.reports.report import ErrorDetail, Part, Report, SkippedTensor

if TYPE_CHECKING:
    from step_cli.reports.autoswitch_profile import (
        AutoswitchProfileReport as AutoswitchProfileReport,
    )
    from step_cli.reports.autoswitch_profile import CriterionReport as CriterionReport
    from step_cli.reports.autoswitch_profile import LayerReport as LayerReport
    from step_cli.reports.autoswitch_profile import OtherEps as OtherEps
    from step_cli.reports.autoswitch_profile import SeedReport as SeedReport
    from step_cli.reports.autoswitch_profile import Spread as Spread
    from step_cli.reports.compare import ComparedPair as ComparedPair
    from step_cli.reports.compare import ComparedRow as ComparedRow
    from step_cli.reports.compare import CompareDryRunReport as CompareDryRunReport
    from step_cli.reports.compare import CompareReport as CompareReport
    from step_cli.reports.compare import FailedRun as FailedRun
    from step_cli.reports.compare import RunToDo as RunToDo
    from step_cli.reports.export import BackendReport as BackendReport
    from step_cli.reports.export import BenchReport as BenchReport
    from step_cli.reports.export import ExportBytes as ExportBytes
    from step_cli.reports.export import ExportLayer as ExportLayer
    from step_cli.reports.export import ExportReport as ExportReport
    from step_cli.reports.export import InputShapes as InputShapes
    from step_cli.reports.export import LayerQuantizers as LayerQuantizers
    from step_cli.reports.export import OutputDifference as OutputDifference
    from step_cli.reports.export import Parity as Parity
    from step_cli.reports.export import QuantizationReport as QuantizationReport
    from step_cli.reports.export import SparsityCounts as SparsityCounts
    from step_cli.reports.prune import PrunedLayer as PrunedLayer
    from step_cli.reports.prune import PruneReport as PruneReport
    from step_cli.reports.prune import PruneTotals as PruneTotals
    from step_cli.reports.prune import RefittedBlock as RefittedBlock
    from step_cli.reports.train import Distilled as Distilled
    from step_cli.reports.train import SplitFound as SplitFound
    from step_cli.reports.train import StaysDense as StaysDense
    from step_cli.reports.train import SwitchPoint as SwitchPoint
    from step_cli.reports.train import TrainReport as TrainReport
    from step_cli.reports.verify_nm import CheckpointVerdict as CheckpointVerdict
    from step_cli.reports.verify_nm import GroupAt as GroupAt
    from step_cli.reports.verify_nm import LayerVerdict as LayerVerdict
    from step_cli.reports.verify_nm import MaskDifference as MaskDifference
    from step_cli.reports.verify_nm import TargetView as TargetView
    from step_cli.reports.verify_nm import TensorrtView as TensorrtView
    from step_cli.reports.verify_nm import VerifyReport as VerifyReport
    from step_cli.reports.verify_nm import VerifyTotals as VerifyTotals
    from step_cli.reports.verify_nm import gravest as gravest

_NAMES = {
    "autoswitch_profile": (
        "OtherEps",
        "Spread",
        "CriterionReport",
        "LayerReport",
        "SeedReport",
        "AutoswitchProfileReport",
    ),
    "compare": (
        "FailedRun",
        "ComparedRow",
        "ComparedPair",
        "CompareReport",
        "RunToDo",
        "CompareDryRunReport",
    ),
    "export": (
        "ExportBytes",
        "InputShapes",
        "LayerQuantizers",
        "OutputDifference",
        "Parity",
        "QuantizationReport",
        "ExportLayer",
        "SparsityCounts",
        "BackendReport",
        "BenchReport",
        "ExportReport",
    ),
    "prune": ("PrunedLayer", "PruneTotals", "RefittedBlock", "PruneReport"),
    "train": ("Distilled", "SplitFound", "StaysDense", "SwitchPoint", "TrainReport"),
    "verify_nm": (
        "GroupAt",
        "MaskDifference",
        "TargetView",
        "TensorrtView",
        "LayerVerdict",
        "VerifyTotals",
        "CheckpointVerdict",
        "VerifyReport",
        "gravest",
    ),
}
_HOME = {name: module for module, names in _NAMES.items() for name in names}

__all__ = ["ErrorDetail", "Part", "Report", "SkippedTensor", *_HOME]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
