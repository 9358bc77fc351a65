"""What sparsity_config of an old config.json leaves dense is left out, and said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

import step_cli
from step_cli.formats.huggingface import sparsity_config
from step_cli.formats.open import open_checkpoint

GOOD = np.tile(np.array([1, 0, 2, 0], np.float32), (8, 4))
DENSE = np.ones((8, 16), np.float32)
UP, GATE, HEAD = "model.layers.0.mlp.up.weight", "model.layers.0.gate.weight", "lm_head"


def directory(
    folder: Path, sparsity: object, place: str = "quantization_config"
) -> Path:
    """A directory with a head that is dense, and a gate that is too."""
    folder.mkdir(exist_ok=True)
    tensors = {UP: GOOD, GATE: DENSE, f"{HEAD}.weight": DENSE, f"{HEAD}.bias": DENSE[0]}
    save_file(tensors, folder / "model.safetensors")
    noted = {"sparsity_config": sparsity}
    config = {"model_type": "llama", **({place: noted} if place else noted)}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def layers(path: Path, **options: Any) -> tuple[int, list[str]]:
    report = step_cli.verify(path, **options)
    found = report.checkpoints[0]
    return report.exit_code, [layer.name for layer in found.layers]


def of(ignore: object, **more: object) -> dict[str, object]:
    return {"format": "dense", "sparsity_structure": "2:4", "targets": ["Linear"],
            "ignore": ignore, **more}  # fmt: skip


ALL = [f"{HEAD}.weight", GATE, UP]


@pytest.mark.parametrize("place", ["quantization_config", "compression_config", ""])
def test_it_is_read_wherever_its_writers_put_it(place: str, tmp_path: Path) -> None:
    folder = directory(tmp_path, of([HEAD, "model.layers.0.gate"]), place)
    assert layers(folder) == (0, [UP])
    assert layers(folder / "model.safetensors") == (0, [UP])
    report = step_cli.verify(folder)
    reasons = {t.name: t.reason for t in report.checkpoints[0].skipped}
    assert reasons[GATE] == reasons[f"{HEAD}.weight"] == "excluded"
    assert report.checkpoints[0].totals.coverage == 1


@pytest.mark.parametrize(
    ("ignore", "expected"),
    [
        ([HEAD, "gate"], [UP]),
        ([r"re:.*lm_head", r"re:model\.layers\.\d+\.gate$"], [UP]),
        (["re:.*(lm_head|gate)"], [UP]),
        ([r"re:.*layers\.\d+\..*gate.*", "re:.*(?:lm_)?head.*$"], [ALL[0], UP]),
        ([r"re:.*layers\.\d+\..*gate.*", "re:.*(?:lm_head|x).*$"], [UP]),
        (["re:lm_head.*"], [GATE, UP]),
        (["model.layers.0"], ALL),  # a module itself, not what is in it
        (["Linear", "Embedding"], ALL),  # classes, which no file tells
        ([], ALL),
        (None, ALL),
        ("lm_head", ALL),
        ([3, {}, "", "re:("], ALL),
    ],
)
def test_names_and_regular_expressions(
    ignore: object, expected: list[str], tmp_path: Path
) -> None:
    code, found = layers(directory(tmp_path, of(ignore)))
    assert (code, found) == (0 if expected == [UP] else 1, expected)


@pytest.mark.parametrize(
    ("targets", "expected"),
    [
        ([r"re:.*mlp\.up"], [UP]),
        (["model.layers.0.mlp.up"], [UP]),
        (["Linear"], ALL),
        (["re:transformer.*"], ALL),  # names of before: they tell nothing
    ],
)
def test_targets_that_are_names_leave_the_rest_dense(
    targets: list[str], expected: list[str], tmp_path: Path
) -> None:
    found = layers(directory(tmp_path, of(None, targets=targets)))
    assert found == (0 if expected == [UP] else 1, expected)


def test_it_is_said_and_the_user_decides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    folder = directory(tmp_path / "m", of([HEAD, "gate"]))
    assert layers(folder) == (0, [UP])
    words = f"sparsity_config in config.json leaves them dense: {HEAD}.weight, {GATE};"
    assert words in caplog.text
    assert layers(folder, include=[f"{HEAD}.weight"]) == (1, [f"{HEAD}.weight"])
    assert layers(folder, include=["*"]) == (0, [UP])
    plan = tmp_path / "plan.json"
    spec = {"pattern": "2:4", "axis": 1}
    document = {"schema": "step-cli/plan/1", "layers": {GATE: spec}}
    plan.write_text(json.dumps(document))
    assert layers(folder, plan=plan) == (1, [GATE])


def test_prune_leaves_them_dense_too(tmp_path: Path) -> None:
    folder = directory(tmp_path / "m", of([HEAD, "gate"]))
    report = step_cli.prune(folder, tmp_path / "out")
    assert [layer.name for layer in report.layers] == [UP]


def test_other_configs_leave_nothing_out(tmp_path: Path) -> None:
    for sparsity in (None, [], "x", {}):
        assert layers(directory(tmp_path, sparsity)) == (1, ALL)
    config = {"quantization_config": {"ignore": ["gate"]}}  # of quantization only
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert layers(tmp_path) == (1, ALL)


@pytest.mark.parametrize(
    "text",
    [
        "re:(.+)+e",
        "re:l?m?_?h?e?a?d?",
        "re:(.*)(.*)(.*)(.*)e",
        "re:(.*a){20}",
        "re:.*.*.*.*.*.*e",
        r"re:(\w*).*\1",
        "re:(?=.*)",
    ],
)
def test_an_expression_that_could_run_for_long_is_not_run(
    text: str, tmp_path: Path
) -> None:
    assert layers(directory(tmp_path, of([text]))) == (1, ALL)


def test_all_of_them_together_have_limited_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sparsity_config, "SECONDS", -1.0)
    folder = directory(tmp_path, of(["re:.*gate"]))
    with pytest.raises(sparsity_config.InputError, match="take too long"):
        open_checkpoint(folder)


@pytest.mark.parametrize(
    ("noted", "kept"),
    [
        ({"quantization_config": {"sparsity_config": of([HEAD])}}, {}),
        ({"compression_config": {"sparsity_config": of([HEAD])}}, {}),
        ({"sparsity_config": of([HEAD])}, {}),
        ({"quantization_config": {"quant_method": "gptq"}}, {"quant_method": "gptq"}),
    ],
)
def test_a_model_that_is_built_and_saved_again_has_none(
    tmp_path: Path, noted: dict[str, Any], kept: dict[str, Any]
) -> None:
    """Else nothing could load what was trained from an old directory."""
    pytest.importorskip("transformers")
    from step_cli.formats.huggingface.model import build_hugging_face

    config = {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"],
              "n_embd": 8, "n_layer": 1, "n_head": 1, "vocab_size": 4}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config | noted))
    built: Any = build_hugging_face(tmp_path).model
    saved = built.config.to_dict()
    assert saved["n_embd"] == 8
    assert (saved.get("quantization_config") or {}) == kept
    assert not {"compression_config", "sparsity_config"} & saved.keys()
