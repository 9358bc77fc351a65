"""What a correct set of recipes must satisfy, item by item, and the tests that show it.

The items are those of the papers' equations, fixtures and invariants. Two that no other
file tests by itself stand here too.
"""

import ast
from pathlib import Path

import pytest
import torch
from small_training import build, train
from torch import nn
from torch.nn import functional

from step_cli.optim.mask import nm_mask
from step_cli.recipes.sparse_adamw import sparse
from step_cli.recipes.sr_ste import SRSTE

TESTS = Path(__file__).parents[1]

CHECKLIST = {
    "masks: N of each group for every N, M, shape, dtype and axis; ties; refusals": [
        "optim/test_mask.py::test_mask_equals_a_slow_loop_over_groups",
        "optim/test_mask.py::test_ties_keep_the_lower_index",
        "optim/test_mask.py::test_a_width_that_does_not_divide_is_refused",
        "optim/test_mask.py::test_negative_zero_is_a_zero",
        "optim/test_mask.py::test_nan_is_refused",
        "optim/test_mask.py::test_n_equal_to_m_keeps_everything",
        "optim/test_mask.py::test_scaling_and_sign_do_not_change_the_mask",
    ],
    "masks: Linear is Conv1D transposed; a 1x1 convolution is flat": [
        "optim/test_mask.py::test_groups_run_along_the_axis_and_no_other",
        "optim/test_mask.py::test_convolution_groups_are_of_input_channels",
        "optim/test_mask.py::test_a_1x1_convolution_has_the_mask_of_the_flat_weight",
    ],
    "STE and SR-STE: pruned weights learn; the decay once per step, not on kept ones": [
        "optim/test_optimizer.py::test_pruned_weights_receive_gradients_and_can_come_back",
        "recipes/test_sr_ste.py::test_a_decay_of_0_is_ste_bit_for_bit",
        "recipes/test_sr_ste.py::test_kept_weights_get_no_decay",
        "recipes/test_sr_ste.py::test_the_decay_does_not_depend_on_loss_scaling",
        "recipes/test_checklist.py::test_the_decay_counts_once_however_many_batches",
    ],
    "M:M trains as dense does, bit for bit": [
        "recipes/test_contract.py::"
        "test_a_pattern_that_keeps_all_trains_as_adamw_while_v_is_learned",
        "recipes/test_s_ste.py::test_n_equal_to_m_is_the_weight_bit_for_bit",
    ],
    "STEP: fixture, invariants, resume before, at and after the switch, no step 0": [
        "optim/test_optimizer.py::test_step_reproduces_the_worked_fixture",
        "optim/test_optimizer.py::test_the_precondition_phase_is_adamw_bit_for_bit",
        "optim/test_optimizer.py::test_the_variance_is_frozen_after_the_switch",
        "optim/test_optimizer.py::test_step_equals_algorithm_1",
        "optim/test_optimizer.py::"
        "test_the_pattern_does_not_change_the_weights_at_the_switch",
        "optim/test_optimizer.py::test_switching_at_step_0_is_refused",
        "recipes/test_step.py::test_a_switch_at_the_end_is_dense_adam_and_one_mask",
        "recipes/test_step.py::"
        "test_a_pattern_that_keeps_all_is_not_dense_adam_once_v_is_frozen",
        "recipes/test_resume.py::test_a_run_continues_bit_for_bit",
    ],
    "AutoSwitch: fixture, window, clipping, Option II, order, shards, scale": [
        "autoswitch/test_autoswitch.py::test_autoswitch_on_the_worked_example",
        "autoswitch/test_autoswitch.py::test_the_windowed_means_of_the_worked_example",
        "autoswitch/test_autoswitch.py::test_geometric_means_of_the_worked_example",
        "autoswitch/test_autoswitch.py::test_the_window_is_rounded_not_floored",
        "optim/test_variance.py::"
        "test_option_2_is_finite_for_falling_and_unchanged_variances",
        "optim/test_variance.py::"
        "test_the_order_of_parameters_does_not_change_the_decision",
        "optim/test_variance.py::test_the_change_scales_with_the_square_of_the_loss",
        "optim/test_variance.py::"
        "test_the_worked_example_is_decided_by_the_optimizer_itself",
        "integration/test_distributed.py::test_autoswitch_fires_at_the_same_step",
    ],
    "Eq. (10) and Eq. (11): constant gradients, examples": [
        "autoswitch/test_autoswitch.py::test_equation_10_fires_at_step_3_on_constant_gradients",
        "autoswitch/test_autoswitch.py::test_equation_10_on_its_examples",
        "autoswitch/test_autoswitch.py::"
        "test_equation_11_fires_after_one_window_on_constant_gradients",
        "autoswitch/test_autoswitch.py::test_equation_11_on_its_examples",
    ],
    "ASP: the mask stays, pruned weights are 0, its table of layers": [
        "optim/test_optimizer.py::test_asp_never_changes_its_mask",
        "recipes/test_asp.py::test_pruned_weights_stay_exactly_zero",
        "recipes/test_asp.py::test_which_layers_have_a_mask",
    ],
    "DominoSearch: ERK, the toy vote, N never rises, the target": [
        "recipes/test_domino_search.py::test_erk_of_two_square_layers",
        "recipes/test_domino_search.py::test_the_toy_vote",
        "recipes/test_domino_search.py::test_the_search_stops_within_its_tolerance",
        "recipes/test_domino_training.py::test_density_never_rises_during_the_search",
    ],
    "decaying masks: the tables, N never rises, the last pattern": [
        "recipes/test_decaying.py::test_stages_begin_where_the_paper_says",
        "recipes/test_decaying.py::test_n_never_rises_and_ends_at_the_target",
        "recipes/test_decaying.py::test_n_falls_as_the_schedule_says",
    ],
    "S-STE: fixture, continuity, a frozen scale, beta S(w) in the end": [
        "recipes/test_s_ste.py::test_the_worked_groups",
        "recipes/test_s_ste.py::test_the_worked_scales",
        "recipes/test_s_ste.py::test_s_moves_at_most_twice_as_far_as_the_weights",
        "recipes/test_s_ste.py::test_a_swap_of_order_moves_s_little_and_the_hard_mask_much",
        "recipes/test_s_ste.py::test_the_scale_is_that_of_the_first_weights_for_good",
        "recipes/test_s_ste.py::test_the_model_holds_the_scaled_soft_weights",
    ],
    "transposable masks: 90 patterns, bounds, fixture, greedy strands": [
        "recipes/test_transposable.py::test_there_are_90_patterns_and_each_entry_is_in_45",
        "recipes/test_transposable.py::"
        "test_the_search_equals_a_slow_loop_and_keeps_its_bounds",
        "recipes/test_transposable.py::test_the_worked_block",
        "recipes/test_transposable.py::test_greedy_strands_where_the_search_does_not",
    ],
    "MVUE: no bias, the tables of chances, at most N": [
        "recipes/test_mvue.py::test_the_expectation_is_the_value",
        "recipes/test_mvue.py::test_two_of_four_has_the_worked_chances_and_variance",
        "recipes/test_mvue.py::test_the_approximation_has_the_worked_chances",
        "recipes/test_mvue.py::test_at_most_n_of_a_group_are_not_zero",
    ],
    "one-shot fixtures: SparseGPT, Wanda, permutation": [
        "oneshot/test_sparsegpt.py::test_the_worked_row",
        "oneshot/test_wanda.py::"
        "test_the_worked_row_keeps_other_weights_than_magnitude_does",
        "channels/test_permutation.py::test_the_worked_row",
        "channels/test_permutation.py::test_the_published_sums_of_a_random_matrix",
    ],
    "memory: the figures of Table 5": [
        "test_benchmark_sizes.py::"
        "test_dense_rows_of_table_5_are_token_embedding_and_sparse_layers",
        "test_benchmark_sizes.py::test_sparse_rows_of_table_5_are_values_only",
        "test_benchmark_sizes.py::test_two_ratios_of_table_5_are_mis_rounded",
    ],
    "export: values and metadata round-trip; sparse and masked forward agree": [
        "formats/compressed/test_codec.py::"
        "test_round_trip_is_bit_exact_and_matches_the_loop",
        "formats/compressed/test_writer.py::test_round_trip_restores_names_types_and_bits",
        "recipes/test_checklist.py::"
        "test_the_models_forward_is_that_of_the_masked_dense_weights",
    ],
}


@pytest.mark.parametrize("item", CHECKLIST)
def test_every_item_has_its_tests(item: str) -> None:
    for name in CHECKLIST[item]:
        path, _, test = name.partition("::")
        tree = ast.parse((TESTS / path).read_text())
        functions = {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
        assert test in functions, name


@pytest.mark.parametrize("batches", [1, 4])
def test_the_decay_counts_once_however_many_batches(batches: int) -> None:
    p = nn.Parameter(torch.tensor([[1.0, -0.2, 0.05, -3.0]]))
    base = torch.optim.SGD([{"params": [p], "pattern": "2:4", "axis": 1}], lr=1.0)
    optimizer = sparse(base, SRSTE(decay=2e-4))
    before = optimizer.state[p]["dense"].clone()
    for _ in range(batches):
        ((p * torch.tensor([[0.1, 0.2, 0.3, 0.4]])).sum() / batches).backward()
    optimizer.step()
    moved = before - optimizer.state[p]["dense"]
    expected = torch.tensor([[0.1, 0.19996, 0.30001, 0.4]])
    torch.testing.assert_close(moved, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("recipe", ["ste", "sr-ste", "step"])
def test_the_models_forward_is_that_of_the_masked_dense_weights(recipe: str) -> None:
    model, optimizer = build(recipe, switch=2)
    train(model, optimizer, 4)
    dense = optimizer.state[model[0].weight]["dense"]
    masked = torch.where(nm_mask(dense.abs(), "2:4", axis=1), dense, 0)
    inputs = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    expected = functional.linear(inputs, masked, model[0].bias)
    assert torch.equal(model[0](inputs), expected)
