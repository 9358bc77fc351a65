"""Two processes, DDP and FSDP2, against one."""

from pathlib import Path
from typing import Any

import pytest
import torch
from integration import distributed_work as work
from integration.ranks import Ranks
from integration.training import (
    batches,
    build_blocks,
    build_model,
    by_autoswitch,
    different,
    optimizer_of,
    train,
)

from step_cli.autoswitch.autoswitch import AutoSwitch, SwitchRule
from step_cli.optim.watch import MEETINGS
from step_cli.recipes import RECIPES

KINDS = ["ddp", "fsdp2", "hsdp"]
STEPS = 8


def alone(options: dict[str, Any], steps: int = STEPS) -> dict[str, Any]:
    blocks = options.get("recipe") in work.BLOCKS
    model = build_blocks() if blocks else build_model()
    optimizer = optimizer_of(model, **options)
    train(model, optimizer, batches(steps))
    return work.outcome(model, optimizer)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_two_processes_fed_the_same_gradients_equal_one(
    ranks: Ranks, kind: str, recipe: str
) -> None:
    if recipe == "bi-mask" and kind != "ddp":
        pytest.skip("refused: a backward mask spans all rows; see below")
    switch = 3 if recipe == "step" else None
    options = {"recipe": recipe, "switch": switch, "total_steps": STEPS}
    one, other = ranks.run(work.train_on, kind, options, True, STEPS)
    reference = alone(options)
    for part in ("weights", "dense"):
        assert not list(different(one[part], other[part]))
        assert not list(different(one[part], reference[part]))
    assert one["switch"] == other["switch"] == reference["switch"]


@pytest.mark.parametrize("kind", KINDS)
def test_ranks_with_halves_of_the_data_hold_the_same_weights_and_masks(
    ranks: Ranks, kind: str
) -> None:
    options = {"switch": 3}
    one, other = ranks.run(work.train_on, kind, options, False, STEPS)
    reference = alone(options)
    for part in ("weights", "dense"):
        assert not list(different(one[part], other[part]))
        for name, tensor in one[part].items():
            torch.testing.assert_close(tensor, reference[part][name], atol=1e-5, rtol=0)


@pytest.mark.slow  # each rank compiles
@pytest.mark.usefixtures("compiler")
def test_compiled_mask_learning_on_shards_equals_the_eager_one(ranks: Ranks) -> None:
    options = {"switch": 3, "compile": True}
    alone(options)  # compiles what the ranks then find in the cache
    one, other = ranks.run(work.train_on, "fsdp2", options, True, STEPS)
    reference = alone({"switch": 3, "compile": False})
    for part in ("weights", "dense"):
        assert not list(different(one[part], other[part]))
        for name, tensor in one[part].items():
            torch.testing.assert_close(tensor, reference[part][name], atol=1e-6, rtol=0)
    for name, dense in one["dense"].items():
        shown = one["weights"][name]
        assert torch.equal(shown != 0, reference["weights"][name] != 0)
        assert torch.equal(shown[shown != 0], dense[shown != 0])


@pytest.mark.parametrize("kind", KINDS)
def test_the_criterion_counts_every_coordinate_once(ranks: Ranks, kind: str) -> None:
    options = {"switch": by_autoswitch(100), "record": True}
    one, other = ranks.run(work.train_on, kind, options, True, STEPS)
    expected_of = alone({"switch": by_autoswitch(100), "record": True})
    reference = expected_of["sample"]
    assert one["sample"] == other["sample"]
    assert one["layers"] == other["layers"]
    for found, wanted in zip(one["layers"], expected_of["layers"], strict=True):
        assert found == pytest.approx(wanted, rel=1e-6)
    assert sum(v_l1 for v_l1, _ in one["layers"]) == pytest.approx(reference.v_l1)
    assert sum(change for _, change in one["layers"]) == pytest.approx(reference.dv_l1)
    assert one["sample"].d == reference.d == sum(p.numel() for p in parameters())
    for sum_of in ("v_l1", "v_l2", "dv_l1", "dv_log"):
        measured, expected = (getattr(s, sum_of) for s in (one["sample"], reference))
        assert measured == pytest.approx(expected, rel=1e-6)


def parameters() -> list[torch.nn.Parameter]:
    return list(build_model().parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_autoswitch_fires_at_the_same_step(ranks: Ranks, kind: str) -> None:
    # Means over two steps: .00476 and .00626, then .00384 at step 5.
    rule = SwitchRule(AutoSwitch(0.5, 0.00395), 2, 100)
    one, other = ranks.run(work.train_on, kind, {"switch": rule}, False, STEPS)
    assert one["switch"] == other["switch"] == alone({"switch": rule})["switch"] == 5


def test_wrapping_late_is_well_where_weights_are_equal(ranks: Ranks) -> None:
    one, other = ranks.run(work.wrapped_late, [0, 0])
    assert not list(different(one["weights"], alone({"recipe": "ste"}, 3)["weights"]))
    assert not list(different(one["weights"], other["weights"]))


def test_shards_put_in_the_place_of_parameters_are_adopted(ranks: Ranks) -> None:
    for said, ended in ranks.run(work.exchanged, "step", 0):
        assert len(said) == 1 and "call adopt()" in said[0]
        assert not list(different(ended["dense"], alone({"switch": 3})["dense"]))


@pytest.mark.parametrize(("recipe", "steps"), [("ste", 0), ("step", 1)])
def test_but_not_where_the_dense_weights_would_be_lost(
    ranks: Ranks, recipe: str, steps: int
) -> None:
    for said, _ in ranks.run(work.exchanged, recipe, steps):
        assert len(said) == 2 and "build it after wrapping" in said[1]


def test_fsdp_reduces_once_a_step_and_only_before_the_switch(ranks: Ranks) -> None:
    # The switch at step 4 looks once more whether any variance is known.
    assert ranks.run(work.communications, "fsdp2") == [[1, 1, 1, 2, 0, 0]] * 2
    assert ranks.run(work.communications, "ddp") == [[0] * 6] * 2


def test_what_is_watched_is_that_of_all_shards(ranks: Ranks) -> None:
    one, other = ranks.run(work.watched_step)
    model = build_model()
    optimizer = optimizer_of(model, recipe="ste")
    optimizer.watch_masks = True
    train(model, optimizer, batches(3))
    assert one == other
    assert one[0] == optimizer.flip_rate()
    assert one[1] == pytest.approx(optimizer.pruned_update_share())
    rates = optimizer.flip_rates()
    assert rates is not None and one[2] == list(rates.values())


# ------------------------------------------------------------------- groups stay whole


def test_a_split_that_cuts_groups_is_refused_on_every_rank(ranks: Ranks) -> None:
    one, other = ranks.run(work.rows_as_groups, 12, 0)
    assert one == other == (
        "a parameter: axis 0 of shape (12, 16) split over 2 processes cuts groups of "
        "M=4; give fully_shard a shard_placement_fn that returns Shard(1) for it, or "
        "exclude the layer"
    )  # fmt: skip


@pytest.mark.parametrize(("rows", "dim"), [(16, 0), (12, 1)])
def test_a_split_between_groups_is_accepted(ranks: Ranks, rows: int, dim: int) -> None:
    assert ranks.run(work.rows_as_groups, rows, dim) == [[2], [2]]


def test_a_mask_over_all_rows_is_refused(ranks: Ranks) -> None:
    with pytest.raises(AssertionError, match=r"UsageError: .*which FSDP splits"):
        ranks.run(work.train_on, "fsdp2", {"recipe": "bi-mask"}, True, 1)


# ------------------------------------------------------------- distributed checkpoints


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("cut", [3, 6, 7], ids=["before", "at", "after"])
def test_a_distributed_checkpoint_continues_bit_for_bit(
    ranks: Ranks, cut: int, flat: bool, tmp_path: Path
) -> None:
    for through, resumed, steps in ranks.run(work.resumed, cut, {}, flat, tmp_path):
        assert steps == cut
        assert through["switch"] == resumed["switch"] == 6
        for part in ("weights", "dense"):
            assert not list(different(through[part], resumed[part]))


@pytest.mark.parametrize("cut", [3, 7], ids=["before", "after"])
def test_bf16_parameters_too(ranks: Ranks, cut: int, tmp_path: Path) -> None:
    options = {"dtype": torch.bfloat16}
    for through, resumed, _ in ranks.run(work.resumed, cut, options, True, tmp_path):
        for part in ("weights", "dense"):
            assert not list(different(through[part], resumed[part]))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize("cut", [3, 7], ids=["before", "after"])
def test_two_processes_checkpoint_and_one_continues(
    ranks: Ranks, cut: int, tmp_path: Path
) -> None:
    (through, _, _), _ = ranks.run(work.resumed, cut, {}, True, tmp_path)
    model = build_model(seed=9)
    optimizer = optimizer_of(model, switch=by_autoswitch())
    work.load(model, optimizer, tmp_path, flat=True)
    train(model, optimizer, batches(STEPS)[cut:])
    ended = work.outcome(model, optimizer)
    assert ended["switch"] == through["switch"]
    assert not list(different(ended["weights"], through["weights"]))


@pytest.mark.parametrize("flat", [False, True], ids=["nested", "flat"])
@pytest.mark.parametrize("recipe", ["step", "asp"])
def test_a_frozen_layer_is_carried_too(
    ranks: Ranks, recipe: str, flat: bool, tmp_path: Path
) -> None:
    found = ranks.run(work.resumed_frozen, recipe, flat, tmp_path)
    for through, resumed, (kept, moved) in found:
        assert kept and moved
        for part in ("weights", "dense"):
            assert not list(different(through[part], resumed[part]))


@pytest.mark.parametrize("broken_on", [None, 0, 1])
def test_all_processes_say_that_a_shard_is_not_sparse(
    ranks: Ranks, broken_on: int | None
) -> None:
    one, other = ranks.run(work.required, broken_on)
    assert one == other
    assert (one == "sparse") == (broken_on is None)
    assert broken_on is None or "0.weight not 2:4" in one


def test_what_is_not_finite_on_one_process_is_said_by_all_at_once(
    ranks: Ranks,
) -> None:
    """One that stopped alone would leave the others waiting."""
    (one, said), (other, _) = ranks.run(work.nan_on_rank_0, "fsdp2")
    assert one == other == MEETINGS
    assert "finite" in said


def test_what_is_written_on_one_process_is_said_by_all_at_once(ranks: Ranks) -> None:
    (one, said), (other, elsewhere) = ranks.run(work.written_on_rank_0, "fsdp2")
    assert one == other == MEETINGS
    assert "weight was changed behind the optimizer's back" in said
    assert elsewhere.startswith("a weight on another process was changed behind")
