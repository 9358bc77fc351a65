"""How far a weight is from a pattern."""

import pytest
import torch

from step_cli.oneshot.distance import nm_distance


def test_what_pruning_would_remove_is_the_distance() -> None:
    weight = torch.tensor([[4.0, -3, 2, 1, 0, 5, 0, 0]])
    found = nm_distance(weight, "2:4", 1)
    assert (found.removed, found.total, found.violations) == (3, 15, 1)
    assert found.share == pytest.approx(0.2)


def test_a_weight_that_complies_has_no_distance() -> None:
    found = nm_distance(torch.tensor([[0.0, -3, 2, 0]]), "2:4", 1)
    assert (found.removed, found.violations) == (0, 0)
    assert nm_distance(torch.zeros(1, 4), "2:4", 1).share == 0


def test_no_other_n_m_weight_is_nearer() -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 8, generator=generator)
    found = nm_distance(weight, "2:4", 1)
    for _ in range(50):
        mask = torch.rand(12, 4, generator=generator).argsort(1).lt(2).view(6, 8)
        other = torch.randn(6, 8, generator=generator) * 0.1 + weight
        assert (weight - other * mask).abs().sum() >= found.removed - 1e-5
