"""A run with a teacher: the plain loop that learns from it, stopped, and refused."""

import json
import logging
import math
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_run import NET, small_config
from stopped_run import stopping_at
from torch import Tensor, nn
from torch.nn import functional

import step_cli
from step_cli.commands.evaluate import evaluate_checkpoint
from step_cli.config.train import TrainConfig
from step_cli.config.types import RECIPE_NAMES
from step_cli.data.batch import Dataset, TensorSplit
from step_cli.data.load import load_data
from step_cli.data.order import batch_at
from step_cli.errors import (
    InputError,
    NonFiniteError,
    StepError,
    StoppedError,
    UsageError,
)
from step_cli.models.save import save_model
from step_cli.models.source import ModelSource
from step_cli.recipes import make_recipe
from step_cli.training import run as run_module
from step_cli.training.dense_recording import dense_twin
from step_cli.training.distributed import Processes
from step_cli.training.records import Unrecorded, variance_header
from step_cli.training.run import train
from step_cli.training.setup import set_up
from step_cli.training.teacher import Teacher, load_teacher
from step_cli.training.trainer import Trainer, lr_at
from step_cli.training.weights_record import TEACHER, digest_of

ALONE = Processes(torch.device("cpu"))
RESULTS = ("model/model.safetensors", "metrics.jsonl", "variance.jsonl", "layers.jsonl")
SHORT = ("train.steps=8", "switch.t_max=5", "train.log_every=1")
SWITCH = 12  # the last step of the precondition phase of `small_config`

# What a teacher in evaluation mode leaves out and leaves alone.
NOISY = """
from torch import nn

def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16),
                         nn.Tanh(), nn.Dropout(0.3), nn.Linear(16, 12))
"""


def net(code: str = NET) -> nn.Module:
    scope: dict[str, Any] = {}
    exec(code, scope)
    model: nn.Module = scope["build"]()
    return model


def teacher_of(code: str = NET, seed: int = 7, scale: float = 3.0) -> dict[str, Tensor]:
    """Weights whose outputs are far from those of a new model."""
    torch.manual_seed(seed)
    state = net(code).state_dict()
    floating = {k: v * scale if v.is_floating_point() else v for k, v in state.items()}
    return {name: value.clone() for name, value in floating.items()}


@pytest.fixture
def teacher(tmp_path: Path) -> Path:
    path = tmp_path / "teacher.safetensors"
    save_file(teacher_of(), path)
    return path


def configured(folder: Path, teacher: Path, *more: str, code: str = NET) -> TrainConfig:
    config = small_config(folder, f"distill.teacher={teacher}", *more)
    (folder / "net.py").write_text(code)
    return config


def weights(run_dir: Path) -> dict[str, Tensor]:
    return load_file(run_dir / "model" / "model.safetensors")


def lines_of(run_dir: Path) -> list[dict[str, Any]]:
    text = (run_dir / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def differing(one: Path, other: Path) -> list[str]:
    return [n for n in RESULTS if (one / n).read_bytes() != (other / n).read_bytes()]


# ---------------------------------------------------------------------- what is learned


def plain_loop(config: TrainConfig, taught_by: Path, first: int) -> dict[str, Tensor]:
    """What anybody would write who has read Hinton et al. (2015)."""
    settings, distill = config.train, config.distill
    torch.manual_seed(settings.seed)
    model, teacher = net(), net()
    teacher.load_state_dict(load_file(taught_by))
    torch.manual_seed(settings.seed)
    model = net()
    optimizer = torch.optim.AdamW(
        model.parameters(), settings.lr, settings.betas, settings.eps,
        settings.weight_decay,
    )  # fmt: skip
    data, t, parts = load_data(config.data), distill.temperature, 2
    for step in range(1, settings.steps + 1):
        optimizer.param_groups[0]["lr"] = lr_at(step, settings)
        for part in range(parts):
            batch = batch_at(data.train, index=(step - 1) * parts + part,
                             size=settings.batch_size, seed=settings.seed)  # fmt: skip
            bf16 = torch.autocast("cpu", torch.bfloat16, settings.precision == "bf16")
            with torch.no_grad(), bf16:
                taught = teacher(*batch.inputs.values()).float()
            with bf16:
                scores = model(*batch.inputs.values()).float()
            loss = functional.cross_entropy(
                scores, batch.labels, label_smoothing=settings.label_smoothing
            )
            if step >= first:
                kl = functional.kl_div(
                    (scores / t).log_softmax(-1), (taught / t).log_softmax(-1),
                    reduction="batchmean", log_target=True,
                )  # fmt: skip
                loss = (1 - distill.weight) * loss + distill.weight * (t**2 * kl)
            (loss / parts).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict()


@pytest.mark.parametrize(
    ("more", "first"),
    [
        ((), 1),
        (("distill.from=5", "distill.temperature=4", "distill.weight=0.9"), 6),
        (("distill.weight=1", "train.label_smoothing=0.1", "train.precision=bf16"), 1),
    ],
    ids=["plain", "later-and-warmer", "alone-in-bf16"],
)
def test_a_dense_run_is_a_plain_loop(
    tmp_path: Path, teacher: Path, more: tuple[str, ...], first: int
) -> None:
    dense = ("sparsity.recipe=dense", "train.grad_accumulation=2")
    config = configured(tmp_path, teacher, *SHORT, *dense, *more)
    report = train(config, tmp_path / "run")
    found, wanted = weights(tmp_path / "run"), plain_loop(config, teacher, first)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    without = plain_loop(config, teacher, first=99)
    assert not torch.equal(found["1.weight"], without["1.weight"])
    assert report.distill is not None and report.distill.first_step == first


@pytest.mark.parametrize("recipe", RECIPE_NAMES)
def test_every_recipe_learns_from_it_once_masks_are_learned(
    tmp_path: Path, teacher: Path, recipe: str
) -> None:
    more = [f"sparsity.recipe={recipe}", "distill.from=switch"]
    more += ["switch.step=3"] if recipe == "asp" else []
    report = train(configured(tmp_path, teacher, *SHORT, *more), tmp_path / "run")
    lines = lines_of(tmp_path / "run")
    assert report.ok
    if recipe == "dense":
        assert report.distill is None and "task_loss" not in lines[0]
        return
    begun = report.switch.step if report.switch else 0
    assert report.distill is not None and report.distill.first_step == begun + 1
    for line in lines:
        after = line["step"] > begun
        assert (line["distill_loss"] is not None) == after
        parts = [line["task_loss"], *([line["distill_loss"]] if after else [])]
        assert line["loss"] == pytest.approx(sum(parts) / len(parts))


def test_a_phase_that_ends_dense_keeps_the_teacher(
    tmp_path: Path, teacher: Path
) -> None:
    more = ["sparsity.recipe=t-sr-ste", "sparsity.options.finish=dense"]
    config = configured(tmp_path, teacher, *SHORT, *more, "distill.from=switch")
    report = train(config, tmp_path / "run")
    assert report.switch is not None and report.switch.step < 8
    assert all(line["distill_loss"] for line in lines_of(tmp_path / "run"))


@pytest.mark.parametrize(("start", "asked"), [("0", 25), ("5", 20), ("switch", 13)])
def test_before_its_start_the_teacher_is_not_run(
    tmp_path: Path, teacher: Path, start: str, asked: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    calls, real = [], Teacher.scores

    def counted(self: Teacher, *given: Any) -> Tensor:
        calls.append(self)
        return real(self, *given)

    monkeypatch.setattr(Teacher, "scores", counted)
    train(configured(tmp_path, teacher, f"distill.from={start}"), tmp_path / "run")
    assert len(calls) == asked  # once before the first step, to see whether it fits


def test_up_to_its_start_a_run_is_that_without(tmp_path: Path, teacher: Path) -> None:
    config = configured(tmp_path, teacher, "distill.from=switch")
    train(config, tmp_path / "run")
    train(small_config(tmp_path), tmp_path / "without")
    names = "step", "loss", "lr", "variance_change"
    one, other = (
        [[line[name] for name in names] for line in lines_of(tmp_path / run)]
        for run in ("run", "without")
    )
    before = [line for line in one if line[0] <= SWITCH]
    assert before == other[: len(before)] and one != other


def test_without_weight_the_bytes_are_those_of_no_teacher(tmp_path: Path) -> None:
    config = configured(tmp_path, tmp_path / "none.pt", "distill.weight=0")
    train(config, tmp_path / "run")  # it is not even opened
    train(small_config(tmp_path), tmp_path / "without")
    assert differing(tmp_path / "run", tmp_path / "without") == []
    one, other = (
        sorted(path.name for path in (tmp_path / run).iterdir())
        for run in ("run", "without")
    )
    assert one == other
    reports = [json.loads((tmp_path / run / "report.json").read_text())
               for run in ("run", "without")]  # fmt: skip
    assert {k: v for k, v in reports[0].items() if k != "run_dir"} == {
        k: v for k, v in reports[1].items() if k != "run_dir"
    }


def test_the_teacher_learns_nothing_and_is_in_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "teacher.safetensors"
    save_file(teacher_of(NOISY), path)
    before = path.read_bytes()
    config = configured(tmp_path, path, code=NOISY)
    setup = set_up(config, ALONE, record=True)
    assert setup.teacher is not None
    model = setup.teacher.model
    state = {name: value.clone() for name, value in model.state_dict().items()}
    header = variance_header(config, setup.model, setup.optimizer)
    Trainer(config, setup, Unrecorded(header), lambda: None).run(lambda: False)
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in model.parameters())
    trained = {p for group in setup.optimizer.param_groups for p in group["params"]}
    assert trained == {*setup.model.parameters()} and not trained & {
        *model.parameters()
    }
    assert setup.model.state_dict().keys() == state.keys()
    assert path.read_bytes() == before
    train(config, tmp_path / "run")
    train(configured(tmp_path, path, "distill.weight=0", code=NOISY), tmp_path / "w0")
    for saved in sorted((tmp_path / "run").glob("checkpoints/*/*.safetensors")):
        other = tmp_path / "w0" / saved.relative_to(tmp_path / "run")
        assert load_file(saved).keys() == load_file(other).keys()


CHECKPOINTED = """
from torch import nn
from torch.utils.checkpoint import checkpoint

class Block(nn.Sequential):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)

def build():
    return nn.Sequential(nn.Flatten(), Block(nn.Linear(64, 16), nn.Tanh()),
                         nn.Linear(16, 12))
"""


def test_activations_that_are_computed_again_change_nothing(tmp_path: Path) -> None:
    path, kept = tmp_path / "teacher.safetensors", CHECKPOINTED.replace(
        "return checkpoint(super().forward, x, use_reentrant=False)",
        "return super().forward(x)",
    )  # fmt: skip
    save_file(teacher_of(CHECKPOINTED), path)
    for name, code in (("again", CHECKPOINTED), ("kept", kept)):
        folder = tmp_path / name
        folder.mkdir()
        train(configured(folder, path, *SHORT, code=code), folder / "run")
    assert differing(tmp_path / "again" / "run", tmp_path / "kept" / "run") == []


@pytest.mark.slow
def test_a_compiled_run_ends_where_one_does_that_is_not(
    tmp_path: Path, teacher: Path
) -> None:
    from step_cli.optim.compiled import can_compile

    if not can_compile():
        pytest.skip("torch.compile finds no compiler")
    train(configured(tmp_path, teacher, *SHORT), tmp_path / "plain")
    config = configured(tmp_path, teacher, *SHORT, "train.compile=true")
    train(config, tmp_path / "compiled")
    plain, compiled = (weights(tmp_path / run) for run in ("plain", "compiled"))
    torch.testing.assert_close(compiled, plain, atol=1e-4, rtol=1e-3)


# ----------------------------------------------------------------------- kinds of data


def test_numbers_are_taught_by_squares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = NET.replace("(16, 12)", "(16, 1)")
    path = tmp_path / "teacher.safetensors"
    save_file(teacher_of(code), path)
    inputs = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    split = TensorSplit({"x": inputs}, inputs[:, 0] * 2)
    name = "step_cli.training.setup.load_data"
    monkeypatch.setattr(name, lambda section: Dataset(split, split))
    monkeypatch.setattr("step_cli.training.setup.say_misfits", lambda *given: None)
    config = configured(tmp_path, path, *SHORT, "distill.weight=0.25", code=code)
    train(config, tmp_path / "run")
    first = lines_of(tmp_path / "run")[0]
    torch.manual_seed(config.train.seed)
    student, teacher = net(code), net(code)
    torch.manual_seed(config.train.seed)
    student.load_state_dict(net(code).state_dict())
    teacher.load_state_dict(load_file(path))
    batch = batch_at(split, index=0, size=16, seed=config.train.seed)
    with torch.no_grad():
        ours, theirs = (m(batch.inputs["x"]).squeeze(1) for m in (student, teacher))
    distill = float((ours - theirs).square().mean())
    task = float((ours - batch.labels).square().mean())
    assert first["distill_loss"] == pytest.approx(distill, rel=1e-5)
    assert first["task_loss"] == pytest.approx(task, rel=1e-5)
    assert first["loss"] == pytest.approx(0.75 * task + 0.25 * distill, rel=1e-5)


def gpt2(folder: Path, layers: int, vocabulary: int = 256) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(layers)
    config = transformers.GPT2Config(
        vocab_size=vocabulary, n_embd=16, n_layer=layers, n_head=2, n_positions=16,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    transformers.GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


def language(folder: Path, teacher: Path, *more: str) -> TrainConfig:
    (folder / "text.txt").write_text("two of four and one of four\n" * 60)
    config = small_config(
        folder, "data.kind=text", f"data.source={folder / 'text.txt'}",
        "data.length=16", "data.held_out=0.2", f"distill.teacher={teacher}",
        f"distill.teacher_model={teacher}", *SHORT, "sparsity.exclude=['lm_head.*']",
        f"model.source={gpt2(folder / 'student', 1)}", "train.batch_size=4", *more,
    )  # fmt: skip
    return config


def test_a_deeper_language_model_teaches_every_token(tmp_path: Path) -> None:
    deeper = gpt2(tmp_path / "deeper", 2)
    report = train(language(tmp_path, deeper), tmp_path / "run")
    assert report.distill is not None and report.distill.distill_loss > 0
    assert {"eval_loss", "eval_perplexity"} <= report.metrics.keys()


def test_other_tokens_are_refused(tmp_path: Path) -> None:
    larger = gpt2(tmp_path / "larger", 1, vocabulary=300)
    with pytest.raises(InputError, match=r"scores \[4, 16, 300\].*\[4, 16, 256\]") as e:
        train(language(tmp_path, larger), tmp_path / "run")
    assert e.value.file == str(larger)
    assert not (tmp_path / "run").exists()


def test_a_translator_is_taught_on_tokens_that_are_scored(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from step_cli.config.samples import sample_directory
    from step_cli.config.train import load_config

    path = sample_directory("translate-tiny") / "config.toml"
    few = ["train.steps=2", "train.batch_size=8", "switch.t_min=0", "switch.t_max=1",
           "train.warmup_steps=0"]  # fmt: skip
    teacher = tmp_path / "teacher.safetensors"
    config = load_config(path, [*few, f"distill.teacher={teacher}"])
    dense = load_config(path, few)
    setup = set_up(dense, ALONE, record=False)
    noise = torch.Generator().manual_seed(0)
    state = {
        name: value + 0.1 * torch.randn(value.shape, generator=noise)
        for name, value in setup.model.state_dict().items()
    }
    save_model(tmp_path / "saved", setup.model, None, ModelSource(""), state=state)
    shutil.copy(tmp_path / "saved" / "model.safetensors", teacher)
    taught = set_up(config, ALONE, record=False)
    header = variance_header(config, taught.model, taught.optimizer)
    trainer = Trainer(config, taught, Unrecorded(header), lambda: None, last_step=1)
    trainer.run(lambda: False)
    found = trainer._made_of()
    again = set_up(config, ALONE, record=False)
    batch = batch_at(again.data.train, index=0, size=8, seed=config.train.seed)
    again.model.train()
    with torch.no_grad():
        assert again.teacher is not None
        theirs = again.teacher.model(**batch.inputs).logits
        ours = again.model(**batch.inputs).logits
    scored = batch.labels >= 0
    assert not bool(scored.all())  # there is padding
    p, q = theirs.double().softmax(-1), ours.double().softmax(-1)
    wanted = (p * (p.log() - q.log())).sum(-1)[scored].mean()
    assert found["distill_loss"] == pytest.approx(float(wanted), rel=1e-4)


# --------------------------------------------------------------------- which teacher


def loaded(config: TrainConfig) -> Teacher:
    recipe = make_recipe(config.sparsity.recipe, {})
    found = load_teacher(config, recipe, nn.Identity(), ALONE)
    assert found is not None
    return found


@pytest.mark.parametrize("kind", ["pt", "run", "wrapped", "compressed", "huggingface"])
def test_any_format_that_can_be_opened(tmp_path: Path, kind: str) -> None:
    if kind == "huggingface":
        dense = gpt2(tmp_path / "dense", 1)
        file = dense / "model.safetensors"
        found = [loaded(language(tmp_path, dense, f"distill.teacher={place}"))
                 for place in (dense, file)]  # fmt: skip
        assert found[0].sha256 == found[1].sha256
        return
    state = teacher_of()
    if kind == "compressed":  # which has to be sparse
        save_file(state, tmp_path / "plain.safetensors")
        pruned = tmp_path / "pruned.safetensors"
        step_cli.prune(tmp_path / "plain.safetensors", pruned)
        state = load_file(pruned)
        place = tmp_path / "pruned.nm.safetensors"
        step_cli.export(pruned, place, to="compressed")
    elif kind == "run":
        model = net()
        model.load_state_dict(state)
        place = tmp_path / "run"
        place.mkdir()
        save_model(place / "model", model, None, ModelSource("elsewhere.py:build"))
    else:
        place = tmp_path / "teacher.pt"
        prefix = "module." if kind == "wrapped" else ""
        torch.save({prefix + name: value for name, value in state.items()}, place)
    found = loaded(configured(tmp_path, place))
    held = found.model.state_dict()
    assert found.sha256 == digest_of({name: state[name] for name in held})
    assert all(torch.equal(state[name], value) for name, value in held.items())


def test_a_wider_teacher_with_the_options_of_its_run(tmp_path: Path) -> None:
    wide = tmp_path / "wide.py"
    code = NET.replace("build()", "build(width)").replace("16", "width")
    wide.write_text(code)
    scope: dict[str, Any] = {}
    exec(code, scope)
    torch.manual_seed(0)
    source = ModelSource(f"{wide}:build", {"width": 40})
    (tmp_path / "dense").mkdir()
    save_model(tmp_path / "dense" / "model", scope["build"](40), None, source)
    given = f"distill.teacher_model={wide}:build"
    config = configured(tmp_path, tmp_path / "dense", given, *SHORT)
    assert train(config, tmp_path / "run").distill is not None
    with pytest.raises(InputError, match=r"shapes differ.*give distill.teacher_model"):
        train(configured(tmp_path, tmp_path / "dense", *SHORT), tmp_path / "other")


def test_an_onnx_teacher_is_run_as_it_is(tmp_path: Path, teacher: Path) -> None:
    onnx_graph = pytest.importorskip("step_cli.formats.onnx.exporter")
    pytest.importorskip("onnxruntime")
    from step_cli.formats.onnx.inputs import parse_input

    model, graph = net(), tmp_path / "teacher.onnx"
    model.load_state_dict(load_file(teacher))
    inputs = [parse_input("input:float32:n,1,8,8")]
    pixels = {"input": torch.randn(3, 1, 8, 8)}
    onnx_graph.export_onnx(model.eval(), inputs, pixels, {}, graph)
    config = configured(tmp_path, graph, *SHORT)
    train(config, tmp_path / "graph")
    train(configured(tmp_path, teacher, *SHORT), tmp_path / "weights")
    found, wanted = weights(tmp_path / "graph"), weights(tmp_path / "weights")
    assert all(torch.allclose(found[name], wanted[name], atol=1e-5) for name in wanted)
    train(small_config(tmp_path, *SHORT), tmp_path / "alone")
    alone = weights(tmp_path / "alone")
    assert not torch.allclose(found["1.weight"], alone["1.weight"], atol=1e-3)
    given = f"distill.teacher_model={tmp_path}/net.py:build"
    with pytest.raises(UsageError, match="an ONNX file is a model by itself"):
        train(configured(tmp_path, graph, given), tmp_path / "other")
    seen = loaded(config).sha256
    graph.write_bytes(graph.read_bytes().replace(b"pytorch", b"Pytorch", 1))
    assert loaded(config).sha256 != seen


def test_a_change_of_one_number_is_another_digest() -> None:
    state = teacher_of() | {"large": torch.randn(100_000), "none": torch.zeros(0),
                            "flag": torch.ones(3, dtype=torch.bool),
                            "narrow": torch.ones(9, dtype=torch.bfloat16),
                            "double": torch.ones(2, dtype=torch.float64)}  # fmt: skip
    seen = {digest_of(state)}
    assert digest_of({name: value.clone() for name, value in state.items()}) in seen
    for name in ("large", "flag", "narrow", "double", "1.weight"):
        other = {key: value.clone() for key, value in state.items()}
        flat = other[name].view(-1)
        flat[1] = ~flat[1] if name == "flag" else flat[1] * 1.01 + 0.5
        assert digest_of(other) not in seen
        seen.add(digest_of(other))
    assert digest_of({f"{name}.": value for name, value in state.items()}) not in seen


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_teacher_that_is_not_finite_is_refused(
    tmp_path: Path, teacher: Path, value: float
) -> None:
    state = load_file(teacher)
    state["3.weight"][2, 3] = value
    save_file(state, teacher)
    with pytest.raises(NonFiniteError, match=r"1 of its 192.*another teacher") as error:
        train(configured(tmp_path, teacher), tmp_path / "run")
    assert (error.value.file, error.value.tensor) == (str(teacher), "3.weight")
    assert error.value.exit_code == 7
    assert not (tmp_path / "run").exists()


def test_a_teacher_whose_outputs_overflow_is_refused(
    tmp_path: Path, teacher: Path
) -> None:
    save_file({k: v * 1e38 for k, v in load_file(teacher).items()}, teacher)
    with pytest.raises(NonFiniteError, match="scores of the first batch") as error:
        train(configured(tmp_path, teacher), tmp_path / "run")
    assert error.value.file == str(teacher)


OTHERS: dict[str, tuple[str, str]] = {
    "classes": (NET.replace("12", "14"), r"scores \[16, 14\].*model \[16, 12\]"),
    "labels": (NET.replace("12", "3"), "is none of its 3 classes"),
    "inputs": (NET.replace("64", "63"), "the model does not fit the data"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_teacher_of_something_else_is_refused(tmp_path: Path, kind: str) -> None:
    code, said = OTHERS[kind]
    (tmp_path / "other.py").write_text(code)
    path = tmp_path / "teacher.safetensors"
    save_file(teacher_of(code), path)
    model = f"distill.teacher_model={tmp_path / 'other.py'}:build"
    with pytest.raises(InputError, match=said) as error:
        train(configured(tmp_path, path, model), tmp_path / "run")
    assert error.value.file == str(path)
    assert not (tmp_path / "run").exists()


# A part that is made once, when the file is read.
SHARED = """
from torch import nn

PART = nn.Linear(64, 16)

def build():
    return nn.Sequential(nn.Flatten(), PART, nn.Tanh(), nn.Linear(16, 12))
"""


def test_a_teacher_that_shares_weights_with_the_student_is_refused(
    tmp_path: Path, teacher: Path
) -> None:
    with pytest.raises(InputError, match="weights of the model that is trained") as e:
        train(configured(tmp_path, teacher, code=SHARED), tmp_path / "run")
    assert e.value.exit_code == 4
    assert not (tmp_path / "run").exists()


def test_codes_without_their_scale_are_refused(tmp_path: Path, teacher: Path) -> None:
    state = load_file(teacher)
    save_file(state | {"1.weight": (state["1.weight"] * 20).to(torch.int8)}, teacher)
    with pytest.raises(InputError, match=r"whole numbers: 1.weight \(int8\)"):
        train(configured(tmp_path, teacher), tmp_path / "run")


def test_no_such_teacher(tmp_path: Path) -> None:
    with pytest.raises(StepError, match="no such file") as error:
        train(configured(tmp_path, tmp_path / "none.pt"), tmp_path / "run")
    assert error.value.exit_code == 4


@pytest.mark.parametrize(("order", "fits"), [((0, 1), True), ((1, 0), False)])
def test_classes_of_the_same_names_must_have_the_same_numbers(
    tmp_path: Path, order: tuple[int, int], fits: bool
) -> None:
    transformers = pytest.importorskip("transformers")
    names = "negative", "positive"
    for folder, numbers in (("student", (0, 1)), ("teacher", order)):
        torch.manual_seed(0)
        config = transformers.BertConfig(
            vocab_size=259, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=16, max_position_embeddings=16,
            label2id=dict(zip(names, numbers, strict=True)),
            id2label=dict(zip(numbers, names, strict=True)),
        )  # fmt: skip
        model = transformers.BertForSequenceClassification(config)
        model.save_pretrained(tmp_path / folder)
    rows = [f"{'good' if n % 2 else 'bad'} film {n},{n % 2}" for n in range(80)]
    (tmp_path / "rows.csv").write_text("\n".join(["sentence,label", *rows]))
    config = small_config(
        tmp_path, "data.kind=table", f"data.source={tmp_path / 'rows.csv'}",
        "data.length=16", "data.held_out=0.2", *SHORT, "train.batch_size=8",
        f"model.source={tmp_path / 'student'}", f"distill.teacher={tmp_path}/teacher",
        f"distill.teacher_model={tmp_path}/teacher",
    )  # fmt: skip
    if fits:
        assert set_up(config, ALONE, record=False).teacher is not None
        return
    with pytest.raises(InputError, match=r"'negative' is 0 in the model, and 1 in the"):
        set_up(config, ALONE, record=False)


def test_a_tokenizer_of_other_numbers_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from step_cli.training import teacher as module

    dense, ours = gpt2(tmp_path / "dense", 1), tmp_path / "ours"
    numbers = {dense: {"a": 0, "b": 1, "c": 2}, ours: {"a": 0, "b": 2}}
    monkeypatch.setattr(module, "numbers_of", lambda place: numbers[place])
    config = language(tmp_path, dense, f"data.tokenizer={ours}")
    loaded(config)  # nothing tells of a tokenizer
    (dense / "tokenizer.json").write_text("{}")
    said = r"'b' is 2 in data.tokenizer, and its tokenizer numbers it 1"
    alone = config.distill.model_copy(update={"teacher": f"{dense}/model.safetensors"})
    for section in (config.distill, alone):
        with pytest.raises(InputError, match=said) as error:
            loaded(config.model_copy(update={"distill": section}))
        assert error.value.file == section.teacher
    numbers[ours] = {"b": 1, "d": 3}
    with pytest.raises(InputError, match=r"'d' is 3 in .*tokenizer lacks it"):
        loaded(config)
    numbers[ours].pop("d")
    loaded(config)


def test_a_dense_recording_of_a_run_has_its_precondition_phase(
    tmp_path: Path, teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = make_recipe("dense", {}), nn.Identity(), ALONE
    late = configured(tmp_path, teacher, "distill.from=switch")
    with caplog.at_level(logging.WARNING):
        assert load_teacher(dense_twin(late), *given) is None
        assert load_teacher(late, *given, quiet=True) is None
        assert not caplog.text
        assert load_teacher(late, *given) is None  # of a run that is to be dense
    assert "learns no masks" in caplog.text
    early = dense_twin(configured(tmp_path, teacher, "distill.from=3"))
    assert load_teacher(early, *given) is not None


def test_an_evaluation_needs_no_teacher(tmp_path: Path, teacher: Path) -> None:
    config = configured(tmp_path, tmp_path / "none.pt")
    assert evaluate_checkpoint(config, teacher).ok


# --------------------------------------------------------------------------- going on


@pytest.mark.parametrize(
    ("start", "stops"), [("7", (6, 7, 8)), ("switch", (SWITCH - 1, SWITCH, SWITCH + 1))]
)
def test_a_stopped_run_ends_with_the_same_bits(
    tmp_path: Path, start: str, stops: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "teacher.safetensors"
    save_file(teacher_of(NOISY), path)
    config = configured(tmp_path, path, f"distill.from={start}", code=NOISY)
    train(config, tmp_path / "whole")
    for step in stops:
        cut = tmp_path / f"cut-{step}"
        with monkeypatch.context() as patch:
            patch.setattr(run_module.Trainer, "run", stopping_at(step, signal.SIGTERM))
            with pytest.raises(StoppedError, match=f"stopped at step {step}"):
                train(config, cut)
        report = train(config, cut, resume=True)
        assert differing(tmp_path / "whole", cut) == []
        assert report.distill is not None


def test_the_results_are_the_last_record_also_after_a_stop_before_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run_dir = tmp_path / "teacher.safetensors", tmp_path / "run"
    save_file(teacher_of(NOISY), path)
    config = configured(tmp_path, path, *SHORT, code=NOISY)

    def interrupted(*given: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "finish", interrupted)
        with pytest.raises(StoppedError, match="before its results were complete"):
            train(config, run_dir)
    whole = train(config, tmp_path / "whole")
    report, last = train(config, run_dir, resume=True), lines_of(run_dir)[-1]
    assert differing(run_dir, tmp_path / "whole") == []
    assert report.model_dump(exclude={"run_dir"}) == whole.model_dump(
        exclude={"run_dir"}
    )
    assert report.metrics == {k: last[k] for k in last if k.startswith("eval_")}
    assert report.dense_metrics not in (None, report.metrics)


def test_another_teacher_is_refused(
    tmp_path: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = configured(tmp_path, teacher)
    with monkeypatch.context() as patch:
        patch.setattr(run_module.Trainer, "run", stopping_at(4, signal.SIGTERM))
        with pytest.raises(StoppedError):
            train(config, tmp_path / "run")
    first = teacher.read_bytes()
    save_file(teacher_of(seed=8), teacher)
    with pytest.raises(InputError, match="not the teacher the run began with") as error:
        train(config, tmp_path / "run", resume=True)
    assert error.value.exit_code == 4
    record = (tmp_path / "run" / TEACHER).read_text()
    (tmp_path / "run" / TEACHER).unlink()
    teacher.write_bytes(first)
    with pytest.raises(InputError):
        train(config, tmp_path / "run", resume=True)
    (tmp_path / "run" / TEACHER).write_text(record)
    other = configured(tmp_path, teacher, "distill.weight=0.4")
    with pytest.raises(InputError, match=r"distill.weight is 0.4, was 0.5"):
        train(other, tmp_path / "run", resume=True)
    assert train(config, tmp_path / "run", resume=True).ok


# ------------------------------------------------------------------------- what is told


@pytest.mark.draws
def test_report_page_and_curves_show_both_losses(tmp_path: Path, teacher: Path) -> None:
    config = configured(tmp_path, teacher, "distill.temperature=2")
    train(config, tmp_path / "run")
    told = json.loads((tmp_path / "run" / "report.json").read_text())["distill"]
    last = lines_of(tmp_path / "run")[-1]
    assert told == {
        "teacher": str(teacher), "weight": 0.5, "temperature": 2.0, "first_step": 1,
        "task_loss": last["task_loss"], "distill_loss": last["distill_loss"],
    }  # fmt: skip
    page = (tmp_path / "run" / "report.html").read_text()
    assert f"at step 24 task loss {last['task_loss']:.4g}, distillation loss" in page
    curves = (tmp_path / "run" / "curves.svg").read_text()
    for words in ("loss, its parts", "of the task", "to the teacher"):
        assert words in curves
    train(small_config(tmp_path), tmp_path / "without")
    assert "to the teacher" not in (tmp_path / "without" / "curves.svg").read_text()
    assert "distillation" not in (tmp_path / "without" / "report.html").read_text()
