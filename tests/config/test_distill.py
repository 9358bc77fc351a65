"""``[distill]``: what may be said, and how a resolved configuration says it."""

import tomllib
from pathlib import Path

import pytest

from step_cli.config.samples import sample_directory
from step_cli.config.train import keys_of, load_config, to_toml
from step_cli.errors import UsageError

CONFIG = sample_directory("digits-resnet") / "config.toml"


def test_without_the_section_there_is_no_teacher() -> None:
    config = load_config(CONFIG)
    assert not config.distill.counts
    assert config.distill.steps_without(100) == 0


@pytest.mark.parametrize(
    ("given", "steps"), [("7", 7), ("0.25", 150), ("switch", None), ("0", 0)]
)
def test_the_start_is_a_step_a_share_or_the_switch(
    given: str, steps: int | None
) -> None:
    config = load_config(CONFIG, [f"distill.from={given}", "distill.teacher=a.pt"])
    assert config.distill.steps_without(600) == steps
    assert config.distill.counts


@pytest.mark.parametrize("weight", ["0", "0.0"])
def test_a_teacher_without_weight_does_not_count(weight: str) -> None:
    given = [f"distill.weight={weight}", "distill.teacher=a.pt"]
    assert not load_config(CONFIG, given).distill.counts


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["distill.weight=1.5"], "distill.weight: expected less than or equal to 1"),
        (["distill.weight=true"], "distill.weight: expected a number, got true"),
        (["distill.weight=-1"], "distill.weight: expected greater than or equal to 0"),
        (
            ["distill.temperature=0"],
            "distill.temperature: expected greater than or equal to 0.01",
        ),
        (
            ["distill.temperature=1e200"],
            "distill.temperature: expected less than or equal to 100",
        ),
        (["distill.temperature=inf"], "distill.temperature: expected"),
        (["distill.from=later"], "got 'later'; or 'switch'"),
        (["distill.from=1.5"], "got 1.5; or 'switch'"),
        (["distill.from=true"], "got True; or 'switch'"),
        (["distill.from=600"], "distill.from 600 is not before steps 600"),
        (["distill.from=1.0"], "distill.from 600 is not before steps 600"),
        (["distill.form=3"], "unknown key distill.form; did you mean from"),
        (["distill.start=3"], "unknown key distill.start"),
        (["distill.teacher_model=net.py:build"], "teacher_model is given without"),
        (
            ["distill.teacher=a", "distill.teacher_model=sample:digit-resnet"],
            "did you mean digits-resnet",
        ),
    ],
)
def test_a_mistake_is_named_with_its_key(overrides: list[str], words: str) -> None:
    with pytest.raises(UsageError) as error:
        load_config(CONFIG, overrides)
    assert words in error.value.message


def test_the_resolved_configuration_says_the_same(tmp_path: Path) -> None:
    given = ["distill.teacher=a.pt", "distill.from=0.5", "distill.temperature=3"]
    config = load_config(CONFIG, given)
    path = tmp_path / "config.toml"
    path.write_text(to_toml(config))
    assert load_config(path) == config
    assert tomllib.loads(path.read_text())["distill"]["from"] == 0.5
    assert dict(keys_of(config))["distill.from"] == 0.5


def test_paths_of_the_file_are_relative_to_it(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text(
        CONFIG.read_text()
        + '[distill]\nteacher = "dense/run"\nteacher_model = "wide.py:build"\n'
    )
    section = load_config(path).distill
    assert section.teacher == str(tmp_path / "dense" / "run")
    assert section.teacher_model == f"{tmp_path}/wide.py:build"
    named = load_config(path, ["distill.teacher_model=sample:stdlib-gpt"])
    assert named.distill.teacher_model == "sample:stdlib-gpt"
