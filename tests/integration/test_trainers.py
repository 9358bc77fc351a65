"""Hugging Face's Trainer and accelerate, against the same training by hand."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from integration.training import dense_weights, different, weights
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, IterableDataset

from step_cli.errors import NotSparseError
from step_cli.optim.mask import count_violations
from step_cli.optim.optimizer import SparseOptimizer
from step_cli.optim.require_sparse import require_sparse
from step_cli.recipes.sparse_adamw import sparse_adamw

transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")

STEPS, BATCH, TOKENS = 6, 4, 12


class Texts(IterableDataset[dict[str, Tensor]]):
    """The same texts in the same order, for every loop."""

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(0)
        for _ in range(STEPS * BATCH):
            tokens = torch.randint(0, 32, (TOKENS,), generator=generator)
            yield {"input_ids": tokens, "labels": tokens}


def gpt2(seed: int = 0) -> Any:
    torch.manual_seed(seed)
    config = transformers.GPT2Config(
        vocab_size=32, n_positions=TOKENS, n_embd=16, n_layer=1, n_head=2,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return transformers.GPT2LMHeadModel(config)


def optimizer_of(model: nn.Module, switch: int) -> SparseOptimizer:
    return sparse_adamw(model, switch=switch, lr=1e-2, weight_decay=0.1)


def decay(optimizer: torch.optim.Optimizer) -> LambdaLR:
    return LambdaLR(optimizer, lambda t: (STEPS - t) / STEPS)


def outcome(model: nn.Module, optimizer: SparseOptimizer) -> dict[str, Tensor]:
    assert optimizer.steps_taken == STEPS
    for p, plan in optimizer.sparse_parameters():
        assert count_violations(p, plan.pattern, plan.axis) == 0
    dense = dense_weights(model, optimizer)
    assert len(dense) == 4  # GPT-2's four Conv1D weights
    return weights(model) | {f"dense of {name}": dense[name] for name in dense}


def by_hand(
    switch: int, accumulate: int = 1, *, as_trainer: bool = False
) -> dict[str, Tensor]:
    model = gpt2()
    optimizer = optimizer_of(model, switch)
    schedule = decay(optimizer)
    loader = DataLoader(Texts(), batch_size=BATCH // accumulate)
    for i, batch in enumerate(loader, start=1):
        if as_trainer:  # its loss is a mean over all labels, the first ones too
            batch["num_items_in_batch"] = batch["labels"].numel()
        (model(**batch).loss / accumulate).backward()
        if i % accumulate == 0:
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return outcome(model, optimizer)


# --------------------------------------------------------------- Hugging Face's Trainer


def trainer_of(model: Any, optimizer: SparseOptimizer, folder: Path) -> Any:
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=BATCH,
        save_steps=3, max_grad_norm=1.0, report_to=[], use_cpu=True, disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    return transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=Texts(),
        optimizers=(optimizer, decay(optimizer)),
    )


@pytest.mark.parametrize("switch", [2, 3, 5])
def test_the_trainer_trains_and_resumes_as_a_plain_loop(
    switch: int, tmp_path: Path
) -> None:
    reference = by_hand(switch, as_trainer=True)
    model = gpt2()
    optimizer = optimizer_of(model, switch)
    trainer_of(model, optimizer, tmp_path).train()
    assert not list(different(outcome(model, optimizer), reference))

    fresh = gpt2(seed=5)
    fresh_optimizer = optimizer_of(fresh, switch)
    resumed = trainer_of(fresh, fresh_optimizer, tmp_path)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert not list(different(outcome(fresh, fresh_optimizer), reference))


def test_the_trainers_default_schedule_takes_the_optimizer(tmp_path: Path) -> None:
    model = gpt2()
    optimizer = optimizer_of(model, 2)
    trainer = trainer_of(model, optimizer, tmp_path)
    trainer.lr_scheduler = None
    trainer.train()
    assert optimizer.phase == "mask-learning"
    assert optimizer.param_groups[-1]["lr"] == pytest.approx(0.0, abs=1e-8)


def best_of(folder: Path, *, switch: int, first: bool) -> tuple[Any, SparseOptimizer]:
    """Train with load_best_model_at_end, the best being the first or the last."""
    model = gpt2()
    optimizer = optimizer_of(model, switch)
    trainer = trainer_of(model, optimizer, folder)
    for name in ("eval_strategy", "save_strategy"):
        setattr(trainer.args, name, transformers.trainer_utils.IntervalStrategy.STEPS)
    trainer.args.save_steps = trainer.args.eval_steps = 1
    trainer.args.load_best_model_at_end = True
    trainer.args.metric_for_best_model = "eval_loss"
    trainer.args.greater_is_better = first  # the loss falls
    trainer.eval_dataset = [next(iter(Texts()))]
    trainer.train()
    return model, optimizer


def test_the_best_model_may_be_a_dense_one_and_is_refused(tmp_path: Path) -> None:
    model, optimizer = best_of(tmp_path / "first", switch=3, first=True)
    with pytest.raises(NotSparseError, match="by load_best_model_at_end"):
        require_sparse(model, optimizer)
    require_sparse(*best_of(tmp_path / "last", switch=3, first=False))


# -------------------------------------------------------------------------- accelerate


def accelerated(
    switch: int, accumulate: int, folder: Path | None, steps: range, seed: int = 0
) -> tuple[Any, SparseOptimizer]:
    """Train for ``steps``, from a folder unless they begin at 0; save at their end."""
    accelerator = accelerate.Accelerator(
        cpu=True, gradient_accumulation_steps=accumulate
    )
    model = gpt2(seed)
    optimizer = optimizer_of(model, switch)
    model, prepared, loader, schedule = accelerator.prepare(
        model,
        optimizer,
        DataLoader(Texts(), batch_size=BATCH // accumulate),
        decay(optimizer),
    )
    if steps.start:
        accelerator.load_state(str(folder))
        loader = accelerator.skip_first_batches(loader, steps.start * accumulate)
    for _, batch in zip(range(len(steps) * accumulate), loader, strict=False):
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), 1.0)
            prepared.step()
            schedule.step()
            prepared.zero_grad()
    if steps.stop < STEPS:
        accelerator.save_state(str(folder))
    return accelerator.unwrap_model(model), optimizer


@pytest.mark.parametrize("accumulate", [1, 2])
def test_accelerate_trains_as_a_plain_loop(accumulate: int) -> None:
    model, optimizer = accelerated(3, accumulate, None, range(STEPS))
    reference = by_hand(3, accumulate)
    assert not list(different(outcome(model, optimizer), reference))


@pytest.mark.parametrize("cut", [2, 3, 4])
def test_accelerate_resumes(cut: int, tmp_path: Path) -> None:
    accelerated(3, 1, tmp_path, range(cut))
    model, optimizer = accelerated(3, 1, tmp_path, range(cut, STEPS), seed=5)
    assert not list(different(outcome(model, optimizer), by_hand(3)))


@pytest.fixture(autouse=True)
def separate_states() -> Iterator[None]:
    """Accelerate keeps one state for the process."""
    yield
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.state.GradientState._reset_state()
