"""The configuration: one source of truth, and an answer to every mistake."""

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from step_cli.config.data import KEYS_OF, DataSection
from step_cli.config.samples import sample_directory
from step_cli.config.train import load_config, to_toml
from step_cli.config.types import RECIPE_NAMES, to_step
from step_cli.errors import InputError, UsageError

VALUES: dict[str, Any] = {
    "held_out": 0.5, "text_columns": ["a"], "label_column": "b", "skip_bad_rows": True,
    "languages": ["de", "en"], "tokenizer": "bytes", "length": 8, "image_size": 32,
    "augment": False,
}  # fmt: skip
CONFIG = sample_directory("digits-resnet") / "config.toml"


def test_overrides_win_over_the_file_and_the_file_over_defaults() -> None:
    config = load_config(CONFIG, ["train.lr=0.5", "sparsity.recipe=sr-ste"])
    assert config.train.lr == 0.5
    assert config.sparsity.recipe == "sr-ste"
    assert config.train.betas == (0.9, 0.98)
    assert config.train.grad_accumulation == 1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("switch.t_mn=3", "unknown key switch.t_mn; did you mean t_min"),
        ("swich.t_min=3", "unknown key swich; did you mean switch"),
        ('sparsity.layer=[{match="a", patern="1:4"}]', "did you mean pattern"),
        ("train.betas=[0.9, 1.0]", "train.betas: expected less than 1"),
        ("train.lr=0", "train.lr: expected greater than 0"),
        ("train.lr=inf", "train.lr: expected"),
        ("train.steps=0", "train.steps: expected"),
        ("train.steps=many", "train.steps: expected"),
        ("train.warmup_steps=1000", "warmup_steps 1000 exceeds steps 600"),
        ("train.optimizer=adm", "'adamw', 'adam' or 'sgd'"),
        ("sparsity.pattern=5:4", "expected N:M such as 2:4"),
        ("sparsity.pattern=4:4", "4:4 keeps every weight; give N:M with N < M, or "),
        ("sparsity.pattern=3", "sparsity.pattern: expected N:M such as 2:4, got 3"),
        ("model=3", "model: expected a section, got 3"),
        ("sparsity.layer=[1]", "sparsity.layer: expected a section, got 1"),
        ("sparsity.options=3", "sparsity.options: expected a table, got 3"),
        ('sparsity.include="*"', "sparsity.include: expected a list, got '*': write"),
        ("train.betas=[0.9]", "train.betas: expected more values, got [0.9]"),
        ("train.betas=[0, 0, 0]", "train.betas: expected fewer values"),
        ("train.steps=1.5", "train.steps: expected a whole number, got 1.5"),
        ("switch.t_min=0.9", "t_min 540 lies after switch.t_max 300"),
        ("switch.t_min=1.5", "a fraction from 0.0 to 1.0, got 1.5"),
        ("switch.criterion=fixed", "needs step"),
        ("train", "expected section.key=value"),
        ("sparsity.recipe=stepp", "no such recipe 'stepp'; did you mean step"),
        ("sparsity.recipe=none", "no such recipe 'none'; "),
        ("model.source=sample:digit-resnet", "did you mean digits-resnet"),
        ("data.source=digit", "no such data 'digit'; did you mean digits"),
        ("data.length=8", "length does not apply to the built-in 'digits'"),
        ("data.kind=text", "kind is for paths, and 'digits' is built in"),
        ("data.kind=txt", "data.kind: expected 'auto', 'cifar10', "),
        ("data.held_out=1.5", "expected a path, or a share between 0 and 1, got 1.5"),
        ("data.held_out=1", "expected a path, or a share between 0 and 1, got 1"),
        ('data.languages=["de"]', "data.languages"),
        ("data.length=7", "data.length: expected greater than or equal to 8"),
        ("data.lenght=8", "unknown key data.lenght; did you mean length"),
    ],
)
def test_a_mistake_is_named_with_its_key(override: str, words: str) -> None:
    with pytest.raises(UsageError) as error:
        load_config(CONFIG, [override])
    assert words in error.value.message


@pytest.mark.parametrize("section", ["model", "data", "train", "sparsity", "switch"])
@pytest.mark.parametrize("value", ["3", "[1]", '"x"', "true"])
def test_no_mistake_names_a_class(section: str, value: str) -> None:
    with pytest.raises(UsageError) as refused:
        load_config(CONFIG, [f"{section}={value}"])
    assert "Section" not in refused.value.message
    assert refused.value.message.startswith(f"{section}: expected a section")


def test_single_layers_may_stay_dense() -> None:
    config = load_config(CONFIG, ['sparsity.layer=[{match="a", pattern="4:4"}]'])
    pattern = config.sparsity.layer[0].pattern
    assert pattern is not None and pattern.dense


@pytest.mark.parametrize("axis", ["true", '"1"', "1.0", "[1]"])
def test_an_axis_is_a_whole_number(axis: str) -> None:
    with pytest.raises(UsageError, match=r"sparsity\.layer\.axis: expected"):
        load_config(CONFIG, [f'sparsity.layer=[{{match="a", axis={axis}}}]'])


def test_a_layer_that_says_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match="give a pattern, an axis, or both"):
        load_config(CONFIG, ['sparsity.layer=[{match="a"}]'])
    config = load_config(CONFIG, ['sparsity.layer=[{match="a", axis=-1}]'])
    assert config.sparsity.layer[0].axis == -1
    assert config.sparsity.layer[0].pattern is None


def test_the_names_of_recipes_are_those_there_are() -> None:
    from step_cli.recipes import RECIPES

    assert tuple(RECIPES) == RECIPE_NAMES


def test_a_file_that_is_no_toml_is_told_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[train]\nsteps = \n")
    with pytest.raises(UsageError, match="line 2"):
        load_config(path)


def test_a_key_given_twice_is_told(tmp_path: Path) -> None:
    path = tmp_path / "c.toml"
    path.write_text("[train]\nsteps = 1\nsteps = 2\n")
    with pytest.raises(UsageError, match="line 3"):
        load_config(path)


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
def test_an_unreadable_file_is_an_input_error(
    tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "c.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError):
        load_config(path)


def test_the_resolved_configuration_reads_back_as_itself(tmp_path: Path) -> None:
    overrides = [
        'sparsity.layer=[{match="a.*", pattern="1:8"}, {match="b", pattern="1:2"}]',
        "sparsity.options.inner=sr-ste",
        "sparsity.options.decay=1e-4",
        'sparsity.include=["a*", "quote\\"d"]',
        "switch.step=0.25",
        'model.options={list = [{a = 1}, {b = 2}], "a b" = "c\\n", none = {}}',
        "model.options.deep={a = {b = [1, {c = 2}], e = {}}, empty = []}",
    ]  # fmt: skip
    config = load_config(CONFIG, overrides)
    path = tmp_path / "resolved.toml"
    path.write_text(to_toml(config))
    assert load_config(path) == config


@given(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    st.floats(1e-300, 1e300),
)
@settings(max_examples=60)
def test_any_text_and_number_survive_the_resolved_file(text: str, lr: float) -> None:
    config = load_config(CONFIG)
    train = config.train.model_copy(update={"lr": lr})
    sparsity = config.sparsity.model_copy(update={"include": (text,)})
    changed = config.model_copy(update={"train": train, "sparsity": sparsity})
    document = tomllib.loads(to_toml(changed))
    assert document["train"]["lr"] == lr
    assert document["sparsity"]["include"] == [text]


def test_paths_of_the_file_are_relative_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "sub" / "c.toml"
    path.parent.mkdir()
    path.write_text(
        '[model]\nsource = "net.py:build"\n[data]\nsource = "digits"\n'
        "[train]\nsteps = 1\n"
    )
    monkeypatch.chdir(tmp_path)
    config = load_config(path, ["model.weights=w.safetensors"])
    assert config.model.source == f"{path.parent / 'net.py'}:build"
    assert config.model.weights == str(tmp_path / "w.safetensors")
    assert load_config(CONFIG).model.source == "sample:digits-resnet"


def test_a_source_of_data_is_a_path_where_it_is_no_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "corpus").mkdir()
    monkeypatch.chdir(tmp_path)
    data = load_config(
        CONFIG, ["data.source=corpus", "data.held_out=v.txt", "data.tokenizer=gpt2"]
    ).data
    assert data.source == str(tmp_path / "corpus")
    assert data.held_out == str(tmp_path / "v.txt")
    assert data.tokenizer == str(tmp_path / "gpt2")
    data = load_config(CONFIG, ["data.source=./none", "data.held_out=0.25",
                                "data.tokenizer=bytes"]).data  # fmt: skip
    assert (data.source, data.held_out, data.tokenizer) == (
        str(tmp_path / "none"), 0.25, "bytes",
    )  # fmt: skip
    (tmp_path / "digits").mkdir()
    assert load_config(CONFIG, ["data.source=digits"]).data.source == "digits"


def test_keys_that_do_not_apply_to_the_kind_are_refused() -> None:
    path = "data.source=./x"
    for kind, heeded in KEYS_OF.items():
        section = {key: VALUES[key] for key in heeded}
        DataSection(source="./x", kind=kind, **section)
        for key in VALUES.keys() - set(heeded):
            value = json.dumps(VALUES[key])
            words = [path, f"data.kind={kind}", f"data.{key}={value}"]
            with pytest.raises(
                UsageError, match=f"{key} does not apply to kind '{kind}'"
            ):
                load_config(CONFIG, words)
    assert VALUES.keys() == DataSection.model_fields.keys() - {"source", "kind"}


@pytest.mark.parametrize(
    ("value", "step"), [(0, 0), (7, 7), (0.25, 150), (0.5, 300), (1.0, 600), (1, 1)]
)
def test_a_float_is_a_fraction_and_an_integer_a_step(value: float, step: int) -> None:
    assert to_step(value, 600) == step
