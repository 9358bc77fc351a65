"""What a run leaves dense is told in a line, in report.json and on the page."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file
from small_run import CONFIG, overrides

from step_cli.commands.evaluate import evaluate_checkpoint
from step_cli.config.train import TrainConfig, load_config
from step_cli.errors import UsageError
from step_cli.formats.plan import read_plan
from step_cli.reports import TrainReport
from step_cli.training.run import train

pytestmark = pytest.mark.draws

NET = """
import torch
from torch import nn

class Mixture(nn.Module):
    def __init__(self):
        super().__init__()
        self.experts = nn.Module()
        self.experts.up_proj = nn.Parameter(torch.randn(2, 16, 12) / 4)

    def forward(self, x):
        return torch.einsum("ni,eio->no", x, self.experts.up_proj)

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.Linear(6, 16), Mixture())

class Low(nn.Module):
    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(64, 12).requires_grad_(False)
        self.lora_A, self.lora_B = nn.Linear(64, 4), nn.Linear(4, 12)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B(self.lora_A(x))

def adapted():
    return nn.Sequential(nn.Flatten(), Low())
"""
EXPERTS = "3.experts.up_proj"


def config_of(folder: Path, *more: str, build: str = "build") -> TrainConfig:
    net = folder / "net.py"
    net.write_text(NET)
    short = ["train.steps=6", "switch.t_min=1", "switch.t_max=2", "train.eval_every=6"]
    given = [*overrides(net), *short, f"model.source={net}:{build}", *more]
    return load_config(CONFIG, given)


def axis(match: str, number: int | None, pattern: str = "2:4") -> str:
    own = "" if number is None else f", axis={number}"
    return f'{{match="{match}", pattern="{pattern}"{own}}}'


def layers(*sections: str) -> str:
    return f"sparsity.layer=[{', '.join(sections)}]"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TrainReport]:
    folder = tmp_path_factory.mktemp("run")
    given = [layers(axis("*experts*", 1)), 'sparsity.exclude=["1.weight"]']
    return folder / "run", train(config_of(folder, *given), folder / "run")


def test_the_report_names_each_with_its_reason_and_share(
    run: tuple[Path, TrainReport],
) -> None:
    path, report = run
    written: dict[str, Any] = json.loads((path / "report.json").read_text())
    every = 64 * 6 + 6 * 16 + 2 * 16 * 12
    assert written["stays_dense"] == [
        {
            "name": name,
            "shape": shape,
            "reason": reason,
            "share": pytest.approx(shape[0] * shape[1] / every),
        }
        for name, shape, reason in (
            ("1.weight", [6, 64], "excluded"),
            ("2.weight", [16, 6], "size"),
        )
    ]
    held = load_file(path / "model" / "model.safetensors")
    weights = [value for value in held.values() if value.ndim > 1]
    kept = sum(int((value != 0).sum()) for value in weights)
    assert written["overall_density"] == kept / sum(value.size for value in weights)
    assert written["density"] == report.density == 0.5


def test_the_page_has_a_table_of_them(run: tuple[Path, TrainReport]) -> None:
    path, report = run
    page = (path / "report.html").read_text()
    assert "What stays dense" in page and "shape [16, 6] has no whole groups" in page
    assert f"{report.overall_density:.4f}" in page


def test_an_axis_of_a_layer_is_the_one_its_groups_run_along(
    run: tuple[Path, TrainReport],
) -> None:
    path, _ = run
    plan = read_plan(path / "nm_plan.json")
    assert {name: spec.axis for name, spec in plan.items()} == {EXPERTS: 1}
    experts = load_file(path / "model" / "model.safetensors")[EXPERTS]
    assert ((experts.reshape(2, 4, 4, 12) != 0).sum(2) <= 2).all()
    assert not ((experts.reshape(2, 16, 3, 4) != 0).sum(3) <= 2).all()


def test_a_checkpoint_that_is_evaluated_has_both_densities(
    run: tuple[Path, TrainReport],
) -> None:
    path, report = run
    found = evaluate_checkpoint(config_of(path.parent), path)
    assert found.overall_density == report.overall_density
    assert found.density == 0.5


def test_the_line_comes_once_and_not_where_nothing_is_pruned(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    train(config_of(tmp_path), tmp_path / "run")
    said = "2.weight stays dense: shape [16, 6] has no whole groups"
    told = [record.getMessage() for record in caplog.records]
    assert sum(said in line for line in told) == 1
    caplog.clear()
    report = train(config_of(tmp_path, "sparsity.recipe=dense"), tmp_path / "dense")
    assert "stays dense" not in caplog.text
    assert report.stays_dense == [] and report.overall_density == 1.0


@pytest.mark.parametrize(
    ("sections", "found"),
    [
        ([axis("*experts*", -2)], ("2:4", 1)),
        ([axis("*up_proj", None, "1:4"), axis("*", 1)], ("1:4", 2)),
        ([axis("*up_proj", 1, "1:4"), axis("*experts*", 2)], ("1:4", 1)),
        (['{match="*experts*", axis=1}'], ("2:4", 1)),
    ],
)
def test_the_first_section_that_matches_decides(
    tmp_path: Path, sections: list[str], found: tuple[str, int]
) -> None:
    config = config_of(tmp_path, layers(*sections))
    train(config, tmp_path / "run")
    spec = read_plan(tmp_path / "run" / "nm_plan.json")[EXPERTS]
    assert (str(spec.pattern), spec.axis) == found


@pytest.mark.parametrize("number", [3, -4])
def test_an_axis_beyond_the_rank_is_refused(tmp_path: Path, number: int) -> None:
    config = config_of(tmp_path, layers(axis("*experts*", number)))
    said = rf"sparsity\.layer: axis {number} of a tensor of 3 axes, .*; use 0 to 2"
    with pytest.raises(UsageError, match=said) as refused:
        train(config, tmp_path / "run")
    assert refused.value.tensor == EXPERTS
    assert not (tmp_path / "run").exists()


def test_a_section_that_matches_nothing_is_told(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    train(config_of(tmp_path, layers(axis("*expertz*", 1))), tmp_path / "run")
    assert "sparsity.layer '*expertz*' matches no tensor" in caplog.text


def test_adapters_of_a_dense_base_are_refused(tmp_path: Path) -> None:
    config = config_of(tmp_path, build="adapted")
    with pytest.raises(UsageError, match=r"1\.lora_A\.weight is an adapter"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
