"""What a run will do that was not asked for is said before its first step."""

import logging
from pathlib import Path

import pytest
from small_run import small_config

from step_cli.commands.foresight import foresee

STEP = "sparsity.recipe=step"
ASP = "sparsity.recipe=asp"


def said(folder: Path, caplog: pytest.LogCaptureFixture, *more: str) -> str:
    caplog.set_level(logging.INFO)
    caplog.clear()
    foresee(small_config(folder, *more))
    return caplog.text


def test_a_window_that_is_not_full_in_time(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert said(tmp_path, caplog, STEP) == ""
    default = "train.betas=[0.9, 0.999]"
    text = said(tmp_path, caplog, STEP, default)
    assert "autoswitch needs 1000 steps (beta2 0.999), more than" in text
    assert "switch.t_max, 11: it decides nothing, and the switch is after" in text
    text = said(tmp_path, caplog, STEP, "switch.window=12")
    assert "autoswitch needs 12 steps (switch.window)" in text
    assert said(tmp_path, caplog, STEP, default, "switch.window=11") == ""
    fixed = ("switch.criterion=fixed", "switch.step=20")
    assert said(tmp_path, caplog, STEP, default, *fixed) == ""
    assert said(tmp_path, caplog, "sparsity.recipe=sr-ste", default) == ""


def test_a_mask_of_random_weights(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = said(tmp_path, caplog, ASP)
    assert "asp: its mask is that of the weights at step 0" in text
    assert "net.py:build starts from random weights, so does the mask" in text
    assert said(tmp_path, caplog, ASP, "switch.step=5") == ""
    assert said(tmp_path, caplog, ASP, f"model.weights={tmp_path}/w") == ""
    assert said(tmp_path, caplog, ASP, f"model.source={tmp_path}") == ""


def test_a_recipe_that_ends_dense(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind = "sparsity.recipe=t-sr-ste"
    text = said(tmp_path, caplog, kind, 'sparsity.options.finish="dense"')
    assert "t-sr-ste: its last steps train without masks" in text
    assert "are dense and not 2:4" in text
    assert said(tmp_path, caplog, kind) == ""
    assert said(tmp_path, caplog, "sparsity.recipe=dense") == ""
