"""Which runs a comparison has, and what each takes of the configuration."""

from pathlib import Path

import pytest
from small_run import small_config

from step_cli.commands.compare.runs import Run, runs_of
from step_cli.config.train import load_config, to_toml
from step_cli.errors import UsageError
from step_cli.nm.pattern import NMPattern

TWO_FOUR, ONE_FOUR = NMPattern(2, 4), NMPattern(1, 4)


def by_name(runs: list[Run]) -> dict[str, Run]:
    return {run.name: run for run in runs}


def test_every_combination_is_a_run_and_dense_one_a_seed(tmp_path: Path) -> None:
    config = small_config(tmp_path, "train.seed=7")
    runs = runs_of(config, ("step", "dense", "asp"), (TWO_FOUR, ONE_FOUR), 2)
    assert [run.name for run in runs] == [
        "dense-seed7", "step-2of4-seed7", "asp-2of4-seed7", "step-1of4-seed7",
        "asp-1of4-seed7", "dense-seed8", "step-2of4-seed8", "asp-2of4-seed8",
        "step-1of4-seed8", "asp-1of4-seed8",
    ]  # fmt: skip
    for run in runs:
        assert run.config.train.seed == run.seed
        assert run.config.sparsity.recipe == run.recipe
        if run.pattern is not None:
            assert str(run.config.sparsity.pattern) == run.pattern


def test_the_pattern_is_that_of_the_configuration(tmp_path: Path) -> None:
    config = small_config(tmp_path, "sparsity.pattern=1:8")
    assert [run.name for run in runs_of(config, ("ste",), None, 1)] == [
        "ste-1of8-seed0"
    ]


def test_a_run_s_configuration_can_be_read_again(tmp_path: Path) -> None:
    settings = ("switch.criterion=fixed", "switch.step=0.25",
                "compare.asp={}")  # fmt: skip
    for run in runs_of(small_config(tmp_path, *settings), ("asp", "step"), None, 1):
        path = tmp_path / "again.toml"
        path.write_text(to_toml(run.config))
        assert load_config(path) == run.config


def test_options_belong_to_the_recipe_of_the_configuration(tmp_path: Path) -> None:
    own = {"inner": "sr-ste", "decay": 1e-3, "v_correction": "none"}
    given = "sparsity.options={inner='sr-ste', decay=1e-3, v_correction='none'}"
    config = small_config(tmp_path, "sparsity.recipe=step", given)
    runs = by_name(runs_of(config, ("dense", "sr-ste", "step"), None, 1))
    assert runs["step-2of4-seed0"].config.sparsity.options == own
    # A decay of SR-STE inside STEP is not SR-STE's own; the optimizer's is everyone's.
    for name in ("dense-seed0", "sr-ste-2of4-seed0"):
        assert runs[name].config.sparsity.options == {"v_correction": "none"}


def test_a_section_gives_options_to_one_recipe(tmp_path: Path) -> None:
    settings = ("sparsity.options={inner='sr-ste', v_correction='none'}",
                "compare.sr-ste={decay=1e-3}", "compare.step={}")  # fmt: skip
    config = small_config(tmp_path, *settings)
    runs = by_name(runs_of(config, ("sr-ste", "step"), None, 1))
    assert runs["sr-ste-2of4-seed0"].config.sparsity.options == {
        "v_correction": "none", "decay": 1e-3,
    }  # fmt: skip
    assert runs["step-2of4-seed0"].config.sparsity.options == {"v_correction": "none"}
    assert all(run.config.compare is None for run in runs.values())


def test_an_unknown_recipe_in_a_section_is_refused(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match=r"no such recipe 'sr-st'; did you mean sr-ste"
    ):
        small_config(tmp_path, "compare.sr-st={}")


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        # STEP's fixed switch is not where ASP prunes or a decay begins.
        (("sparsity.recipe=step", "switch.criterion=fixed", "switch.step=0.25"),
         {"asp": None, "decaying-mask": None, "step": 0.25}),
        # Nor is ASP's where STEP would switch, unless that is asked for.
        (("sparsity.recipe=asp", "switch.step=0.25"),
         {"asp": 0.25, "decaying-mask": None, "step": None}),
        (("sparsity.recipe=asp", "switch.criterion=fixed", "switch.step=0.25"),
         {"asp": 0.25, "decaying-mask": None, "step": 0.25}),
    ],
)  # fmt: skip
def test_the_fixed_step_belongs_to_one_recipe(
    tmp_path: Path, settings: tuple[str, ...], steps: dict[str, float | None]
) -> None:
    runs = runs_of(small_config(tmp_path, *settings), tuple(steps), None, 1)
    assert {run.recipe: run.config.switch.step for run in runs} == steps


def test_patterns_of_layers_and_patterns_to_compare_contradict(tmp_path: Path) -> None:
    layer = "sparsity.layer=[{match='1.*', pattern='1:4'}]"
    for setting, name in ((layer, "layer"), ("sparsity.plan=a.json", "plan")):
        config = small_config(tmp_path, setting)
        with pytest.raises(UsageError, match=f"--patterns: sparsity.{name} gives"):
            runs_of(config, ("step",), (TWO_FOUR,), 1)
    label = {"layer": "2of4", "plan": "plan"}
    for setting, name in ((layer, "layer"), ("sparsity.plan=a.json", "plan")):
        runs = runs_of(small_config(tmp_path, setting), ("step",), None, 1)
        assert runs[0].name == f"step-{label[name]}-seed0"
    axes = small_config(tmp_path, "sparsity.layer=[{match='1.*', axis=1}]")
    assert len(runs_of(axes, ("step",), (TWO_FOUR, ONE_FOUR), 1)) == 2


def test_too_many_seeds_are_refused(tmp_path: Path) -> None:
    config = small_config(tmp_path, f"train.seed={2**31 - 2}")
    assert len(runs_of(config, ("dense",), None, 2)) == 2
    with pytest.raises(UsageError, match="--seeds"):
        runs_of(config, ("dense",), None, 3)
