"""One loss and one set of metrics for classes, tokens and numbers."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from step_cli.data.batch import IGNORED, Batch, TensorSplit
from step_cli.errors import InputError, NonFiniteError
from step_cli.training.distributed import Processes
from step_cli.training.evaluate import evaluate, loss_of, scores_of

oracle = pytest.importorskip("sklearn.metrics")
CPU = torch.device("cpu")
ALONE = Processes(CPU)


class Given(nn.Module):
    """Returns its input, as a tensor or as Hugging Face models do."""

    def __init__(self, *, wrapped: bool = False) -> None:
        super().__init__()
        self.wrapped = wrapped

    def forward(self, scores: Tensor, shift: Tensor | None = None) -> Any:
        moved = scores if shift is None else scores + shift[:, None]
        return SimpleNamespace(logits=moved) if self.wrapped else moved


def metrics(scores: Tensor, labels: Tensor, batch_size: int = 3) -> dict[str, float]:
    split = TensorSplit({"scores": scores}, labels)
    return evaluate(Given(), split, ALONE, batch_size=batch_size)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_classes_give_loss_and_accuracy() -> None:
    scores, labels = drawn(10, 4), torch.arange(10) % 4
    found = metrics(scores, labels)
    assert found == pytest.approx(
        {
            "eval_loss": float(nn.functional.cross_entropy(scores, labels)),
            "eval_accuracy": float((scores.argmax(1) == labels).float().mean()),
        }
    )


def test_two_classes_give_the_metrics_of_glue() -> None:
    scores, labels = drawn(40, 2), (drawn(40, seed=1) > 0).long()
    found, guess = metrics(scores, labels), scores.argmax(1)
    assert found["eval_f1"] == pytest.approx(oracle.f1_score(labels, guess))
    wanted = oracle.matthews_corrcoef(labels, guess)
    assert found["eval_matthews"] == pytest.approx(wanted)
    assert 0.1 < abs(wanted) < 0.9


def test_a_model_that_always_says_the_same_has_no_correlation() -> None:
    found = metrics(torch.tensor([[1.0, 0.0]] * 6), torch.tensor([0, 1, 0, 1, 1, 0]))
    assert found["eval_matthews"] == found["eval_f1"] == 0.0
    assert metrics(torch.ones(4), torch.arange(4.0))["eval_pearson"] == 0.0


def test_numbers_give_the_squared_error_and_pearsons_correlation() -> None:
    scores = drawn(20, 1)
    labels = scores[:, 0] * 2 + 1 + 0.5 * drawn(20, seed=1)
    found = metrics(scores, labels)
    wanted = np.corrcoef(scores[:, 0], labels)[0, 1]
    assert found["eval_pearson"] == pytest.approx(wanted)
    assert found["eval_loss"] == pytest.approx(
        float((scores[:, 0] - labels).square().mean())
    )
    assert "eval_accuracy" not in found


def test_tokens_are_averaged_over_those_that_are_scored() -> None:
    # Batches of three samples have unequal numbers of scored tokens.
    scores, labels = drawn(4, 5, 7), torch.arange(20).reshape(4, 5) % 7
    labels[0, 1:] = labels[3, 2:] = IGNORED
    scored = labels != IGNORED
    found = metrics(scores, labels)
    loss = nn.functional.cross_entropy(scores[scored], labels[scored])
    assert found["eval_loss"] == pytest.approx(float(loss))
    assert found["eval_perplexity"] == pytest.approx(math.exp(float(loss)))
    right = (scores[scored].argmax(1) == labels[scored]).float().mean()
    assert found["eval_accuracy"] == pytest.approx(float(right))


def test_the_batch_size_changes_no_metric() -> None:
    scores, labels = drawn(11, 2), (drawn(11, seed=1) > 0).long()
    assert metrics(scores, labels, 1) == pytest.approx(metrics(scores, labels, 11))


def test_an_enormous_loss_is_still_told() -> None:
    found = metrics(torch.tensor([[[0.0, 1e4]]]), torch.tensor([[0]]))
    assert found["eval_loss"] == 1e4
    assert math.isfinite(found["eval_perplexity"])


@pytest.mark.parametrize("wrapped", [False, True])
def test_inputs_go_by_position_or_by_name_and_logits_are_found(wrapped: bool) -> None:
    labels, values = torch.tensor([0, 1]), drawn(2, 3)
    one = Batch({"whatever": values}, labels)
    assert torch.equal(scores_of(Given(wrapped=wrapped), one, CPU)[0], values)
    two = Batch({"shift": torch.ones(2), "scores": values}, labels)
    assert torch.equal(scores_of(Given(wrapped=wrapped), two, CPU)[0], values + 1)


def test_evaluating_leaves_the_model_as_it_was() -> None:
    model = Given().train()
    evaluate(model, TensorSplit({"x": drawn(2, 3)}, torch.tensor([0, 1])), ALONE,
             batch_size=2)  # fmt: skip
    assert model.training


def test_a_token_beyond_the_embedding_is_told_with_what_to_look_at() -> None:
    batch = Batch({"x": torch.tensor([[0, 2]])}, torch.tensor([[0, 1]]))
    assert scores_of(nn.Embedding(3, 2), batch, CPU)[0].shape == (1, 2, 2)
    with pytest.raises(InputError, match=r"no embedding for; see data\.tokenizer and"):
        scores_of(nn.Embedding(2, 2), batch, CPU)


def test_gradients_of_ignored_tokens_are_zero() -> None:
    scores = drawn(2, 3, 4).requires_grad_()
    labels = torch.tensor([[1, IGNORED, 2], [IGNORED, IGNORED, 0]])
    loss_of(scores, labels).backward()
    assert scores.grad is not None
    assert torch.equal(scores.grad.abs().sum(-1) > 0, labels != IGNORED)


@pytest.mark.parametrize(
    ("scores", "labels", "words"),
    [
        (drawn(2, 3), torch.tensor([0, 3]), "label 3 is none of its 3 classes, 0 to 2"),
        (drawn(2, 3), torch.tensor([0, 3]), "set num_labels in"),
        (drawn(2, 3), torch.tensor([0, -1]), "label -1 is none of its 3 classes"),
        (drawn(2, 4, 3), torch.tensor([[0, 1, 2, 9]] * 2), "label 9 is none"),
        (drawn(2, 3), torch.tensor([0.5, 1.0]), r"scores \[2, 3\] for float labels"),
        (drawn(2, 4, 3), torch.tensor([0, 1]), r"\[2, 4, 3\] for integer labels \[2\]"),
        (drawn(2, 4, 3), torch.tensor([0, 1]), "it scores tokens, .* can name another"),
        (drawn(2), torch.tensor([0, 1]), r"scores \[2\] for integer labels \[2\]"),
    ],
)
def test_a_model_that_does_not_fit_its_data_is_told_in_one_line(
    scores: Tensor, labels: Tensor, words: str
) -> None:
    with pytest.raises(InputError, match=f"the model does not fit the data: .*{words}"):
        metrics(scores, labels)
    assert metrics(drawn(2, 3), torch.tensor([0, IGNORED]))["eval_loss"] > 0


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Linear(5, 2), "RuntimeError: mat1 and mat2 shapes cannot be multiplied"),
        (nn.LSTM(3, 2), "it returns tuple, not a tensor"),
        (nn.Embedding(2, 2), "RuntimeError: Expected tensor for argument"),
    ],
)
def test_what_the_model_raises_or_returns_is_told(model: nn.Module, words: str) -> None:
    batch = Batch({"x": drawn(2, 3)}, torch.tensor([0, 1]))
    with pytest.raises(InputError, match="the model does not fit the data: ") as error:
        scores_of(model, batch, CPU)
    assert words in error.value.message
    assert "\n" not in error.value.message


def test_a_name_the_model_does_not_know_is_told() -> None:
    batch = Batch({"scores": drawn(2, 3), "pixels": drawn(2)}, torch.tensor([0, 1]))
    with pytest.raises(InputError, match="unexpected keyword argument 'pixels'"):
        scores_of(Given(), batch, CPU)


def test_memory_that_runs_out_is_no_misfit() -> None:
    class Greedy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise torch.OutOfMemoryError("too much")

    with pytest.raises(torch.OutOfMemoryError):
        scores_of(Greedy(), Batch({"x": drawn(1)}, torch.tensor([0])), CPU)


def test_a_loss_that_is_not_finite_is_no_metric() -> None:
    with pytest.raises(NonFiniteError, match="the loss on held-out data is nan"):
        metrics(torch.full((2, 3), math.nan), torch.tensor([0, 1]))


def test_nothing_to_score_is_told() -> None:
    with pytest.raises(InputError, match="nothing to score"):
        metrics(drawn(1, 2, 3), torch.tensor([[IGNORED, IGNORED]]))


def test_label_smoothing_spreads_a_share_of_the_target() -> None:
    scores, labels = drawn(6, 4), torch.tensor([0, 1, IGNORED, 2, 3, 0])
    log_p = scores.log_softmax(1)[labels != IGNORED]
    own = log_p[range(5), labels[labels != IGNORED]]
    wanted = -(0.9 * own + 0.1 * log_p.mean(1)).mean()
    assert loss_of(scores, labels, label_smoothing=0.1) == pytest.approx(float(wanted))
