"""A whole comparison: its directory, its results, its refusals and its failures."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from commands.compare.comparisons import FILES, RECIPES, files, read, runs, words
from torch.multiprocessing.reductions import StorageWeakRef
from torch.optim.optimizer import register_optimizer_step_post_hook

from step_cli.commands.compare import outcome as outcome_module
from step_cli.commands.compare.statistics import paired_difference
from step_cli.errors import NonFiniteError, OutputError
from step_cli.formats.files.target import locked
from step_cli.training import run as run_module
from step_cli.training.trainer import Trainer

Cli = Callable[..., Any]
ALL = (*RECIPES, "--patterns", "2:4,1:4", "--seeds", "2")
FEW = ("--recipes", "dense,asp", "--seeds", "1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of four recipes at two patterns over two seeds, made once."""
    import io

    from step_cli.cli import app as cli

    folder = tmp_path_factory.mktemp("whole")
    argv = [*words(folder), *ALL, "--run-dir", str(folder / "runs"), "--json"]
    out = io.StringIO()
    assert cli.run(argv, out) == 0
    (folder / "stdout.json").write_text(out.getvalue())
    return folder


def test_every_run_is_a_run_directory(whole: Path) -> None:
    expected = sorted(
        f"{kind}-seed{seed}"
        for seed in (0, 1)
        for kind in ("dense", *(f"{recipe}-{pattern}" for pattern in ("2of4", "1of4")
                                for recipe in ("asp", "sr-ste", "step")))
    )  # fmt: skip
    assert runs(whole / "runs") == expected
    there = {path.name for path in (whole / "runs").iterdir()}
    assert there == {*expected, *FILES}
    for name in expected:
        report = json.loads((whole / "runs" / name / "report.json").read_text())
        assert report["schema"] == "step-cli/train/1" and report["ok"]


def test_rows_hold_what_the_runs_reached(whole: Path) -> None:
    document = read(whole / "runs")
    assert document["schema"] == "step-cli/compare/1" and document["ok"] is True
    assert document["metric"] == "eval_accuracy" and document["higher_is_better"]
    kinds = [(row["recipe"], row["pattern"]) for row in document["rows"]]
    assert kinds == [
        ("dense", None), ("asp", "2:4"), ("sr-ste", "2:4"), ("step", "2:4"),
        ("asp", "1:4"), ("sr-ste", "1:4"), ("step", "1:4"),
    ]  # fmt: skip
    dense = document["rows"][0]
    for row in document["rows"]:
        values = [
            json.loads((whole / "runs" / run / "report.json").read_text())["metrics"]
            for run in row["runs"]
        ]
        one, other = row["values"]
        assert row["values"] == [value["eval_accuracy"] for value in values]
        assert row["seeds"] == [0, 1] and row["failed"] == []
        assert row["mean"] == pytest.approx((one + other) / 2)
        assert row["sd"] == pytest.approx(abs(one - other) / 2**0.5)
        assert row["to_dense"] == row["mean"] - dense["mean"]
        steps = {"step": [12, 12], "asp": [0, 0]}.get(row["recipe"], [])
        assert row["switch_steps"] == steps


def test_pairs_are_paired_over_the_seeds(whole: Path) -> None:
    document = read(whole / "runs")
    rows = {(row["recipe"], row["pattern"]): row for row in document["rows"]}
    assert len(document["pairs"]) == 2 * 6  # of four recipes, at each pattern
    for pair in document["pairs"]:
        better, than = (
            dict(zip(row["seeds"], row["values"], strict=True))
            for name in (pair["better"], pair["than"])
            for row in [rows[name, None if name == "dense" else pair["pattern"]]]
        )
        found = paired_difference(better, than)
        assert found is not None and found.mean >= 0
        assert pair["difference"] == found.mean
        assert tuple(pair["interval"]) == found.interval
        assert pair["clear"] == found.clear


def test_stdout_and_the_file_differ_in_the_directory_alone(whole: Path) -> None:
    told = json.loads((whole / "stdout.json").read_text())
    written = read(whole / "runs")
    assert told.pop("run_dir") == str(whole / "runs") and written.pop("run_dir") == "."
    assert told == written


def test_nothing_of_the_machine_is_in_the_files(whole: Path) -> None:
    for name, content in files(whole / "runs").items():
        assert str(whole).encode() not in content, name
        assert b"net.py" in content or name == "comparison.json"


def test_a_finished_comparison_is_not_trained_again(
    whole: Path, step_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files(whole / "runs")
    monkeypatch.setattr(run_module, "set_up", None)
    argv = [*words(whole), *ALL, "--run-dir", whole / "runs", "--resume"]
    outcome = step_cli(*argv)
    assert outcome.code == 0, outcome.err
    assert "14 of 14 runs are finished" in outcome.err
    assert "14 of 14 runs count" in outcome.out and "sr-ste   1:4" in outcome.out
    assert files(whole / "runs") == before


def test_another_configuration_is_refused(whole: Path, step_cli: Cli) -> None:
    before = files(whole / "runs")
    argv = [*words(whole, "train.lr=0.5"), *ALL, "--run-dir", whole / "runs"]
    outcome = step_cli(*argv, "--resume")
    assert outcome.code == 4
    assert "train.lr is 0.5, was 0.001" in outcome.error
    assert "dense-seed0" in outcome.error
    assert files(whole / "runs") == before


def test_a_directory_is_neither_replaced_nor_shared_by_chance(
    whole: Path, step_cli: Cli, tmp_path: Path
) -> None:
    argv = [*words(tmp_path), *FEW, "--run-dir"]
    outcome = step_cli(*argv, whole / "runs")
    assert outcome.code == 5 and "--force" in outcome.error
    missing = step_cli(*argv, tmp_path / "none", "--resume")
    assert missing.code == 4 and "nothing to resume" in missing.error
    single = step_cli(*argv, whole / "runs" / "dense-seed0", "--resume")
    assert single.code == 4 and "a single run" in single.error
    with locked(tmp_path / "held", shown=tmp_path / "held"):
        (tmp_path / "held").mkdir()
        held = step_cli(*argv, tmp_path / "held", "--resume")
    assert held.code == 5 and "is being written by process" in held.error
    assert list((tmp_path / "held").iterdir()) == []


def test_what_is_no_comparison_and_no_run_is_left_alone(
    step_cli: Cli, tmp_path: Path
) -> None:
    argv = [*words(tmp_path), "--recipes", "dense", "--resume", "--run-dir"]
    mine = tmp_path / "mine"
    (mine / "dense-seed0").mkdir(parents=True)
    (mine / "dense-seed0" / "notes.txt").write_text("mine")
    outcome = step_cli(*argv, mine)
    assert outcome.code == 4 and "no comparison was begun here" in outcome.error
    (mine / "comparison.md").write_text("")
    outcome = step_cli(*argv, mine)
    assert outcome.code == 4 and "is no run, so it is not replaced" in outcome.error
    assert [path.name for path in (mine / "dense-seed0").iterdir()] == ["notes.txt"]


def test_more_seeds_are_added_to_a_comparison(step_cli: Cli, tmp_path: Path) -> None:
    argv = [*words(tmp_path), "--recipes", "asp", "--run-dir", tmp_path / "runs"]
    assert step_cli(*argv).code == 0
    first = read(tmp_path / "runs")["rows"][0]
    assert first["sd"] is None and first["to_dense"] is None
    page = tmp_path / "runs" / "asp-2of4-seed0" / "report.html"
    before = page.stat().st_mtime_ns
    assert step_cli(*argv, "--seeds", "2", "--resume").code == 0
    assert page.stat().st_mtime_ns == before
    second = read(tmp_path / "runs")["rows"][0]
    assert second["values"][:1] == first["values"] and second["seeds"] == [0, 1]


def test_force_replaces_a_comparison(step_cli: Cli, tmp_path: Path) -> None:
    argv = [*words(tmp_path), "--run-dir", tmp_path / "runs"]
    assert step_cli(*argv, "--recipes", "asp,dense").code == 0
    assert step_cli(*argv, "--recipes", "asp", "--force").code == 0
    assert runs(tmp_path / "runs") == ["asp-2of4-seed0"]
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "net.py"}


# ------------------------------------------------------------------ refused at once


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--recipes", "dense,stepp"], "no such recipe 'stepp'; did you mean step"),
        (["--recipes", "dense,,asp"], "expected names with commas between"),
        (["--recipes", "asp,step,asp"], "asp is named twice"),
        (["--recipes", "asp", "--patterns", "2:4,2of4"], "expected N:M such as 2:4"),
        (["--recipes", "asp", "--patterns", "4:4"], "with N < M"),
        (["--recipes", "asp", "--patterns", "2:4,02:4"], "2:4 is named twice"),
        (["--recipes", "asp", "--seeds", "0"], "--seeds"),
        (["--recipes", "asp", "--evaluate", "x"], "leave out --recipes"),
        (["--recipes", "asp", "--force", "--resume"], "use one"),
        (["--patterns", "1:4"], "--patterns is for a comparison: give --recipes too"),
        (["--seeds", "3"], "--seeds is for a comparison"),
        (["--dry-run"], "--dry-run is for a comparison"),
        # The first layer has 64 outputs and inputs, the second 12 outputs.
        (["--recipes", "asp,t-sr-ste", "--patterns", "2:4,1:8"],
         "t-sr-ste at 1:8: 3.weight: shape (12, 16) does not divide"),
        (["--recipes", "asp,s-ste", "--patterns", "2:4,1:8",
          "--set", "compare.s-ste={mvue='approximate'}"], "s-ste at 1:8: mvue"),
        (["--recipes", "asp", "--set", "compare.asp={decay=1}"],
         "recipe asp has no option 'decay'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_the_first_step(
    step_cli: Cli,
    tmp_path: Path,
    more: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Trainer, "run", None)
    outcome = step_cli(*words(tmp_path), "--run-dir", tmp_path / "runs", *more)
    assert outcome.code == 2
    assert said in outcome.error
    assert not (tmp_path / "runs").exists()


def test_a_pattern_that_fits_no_layer_is_refused(step_cli: Cli, tmp_path: Path) -> None:
    argv = [*words(tmp_path), *FEW, "--patterns", "2:4,1:7"]
    outcome = step_cli(*argv, "--run-dir", tmp_path / "runs")
    assert outcome.code == 3 and "asp at 1:7: no layer" in outcome.error
    assert not (tmp_path / "runs").exists()


def test_without_scipy_it_is_refused_at_the_start(
    step_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "scipy"]:
        monkeypatch.delitem(sys.modules, name)

    class Absent:
        def find_spec(self, name: str, *given: object) -> None:
            if name == "scipy":
                raise ModuleNotFoundError("No module named 'scipy'", name="scipy")

    monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
    outcome = step_cli(*words(tmp_path), *FEW, "--run-dir", tmp_path / "runs")
    assert outcome.code == 6 and "step-cli[train]" in outcome.error
    assert not (tmp_path / "runs").exists()


# ------------------------------------------------------------------- comparable runs


def test_runs_of_a_seed_begin_alike_and_see_the_same_batches(
    step_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starts: dict[tuple[str, int], list[torch.Tensor]] = {}
    batches: dict[tuple[str, int], list[tuple[int, float]]] = {}
    set_up, step = run_module.set_up, Trainer._step

    def watched(config: Any, *given: Any, **more: Any) -> Any:
        setup = set_up(config, *given, **more)
        with setup.optimizer.dense_weights():
            held = setup.model.state_dict().values()
            starts[key(config)] = [value.clone() for value in held]
        return setup

    def key(config: Any) -> tuple[str, int]:
        return f"{config.sparsity.recipe} {config.sparsity.pattern}", config.train.seed

    def seeing(self: Trainer, number: int, *given: Any, **more: Any) -> float:
        batch = self._batches[number - 1]
        sums = [float(v.double().sum()) for v in batch.inputs.values()]
        batches.setdefault(key(self.config), []).append((number, sum(sums)))
        return step(self, number, *given, **more)

    monkeypatch.setattr(run_module, "set_up", watched)
    monkeypatch.setattr(Trainer, "_step", seeing)
    argv = [*words(tmp_path, "train.steps=12"), *RECIPES, "--seeds", "2"]
    assert step_cli(*argv, "--run-dir", tmp_path / "runs").code == 0
    assert len(starts) == len(batches) == 8
    for seed, other in ((0, 1), (1, 0)):
        of_seed = [name for name in starts if name[1] == seed]
        first = of_seed[0]
        for name in of_seed:
            assert all(map(torch.equal, starts[name], starts[first]))
            assert batches[name] == batches[first] and len(batches[name]) == 12
        unlike = next(name for name in starts if name[1] == other)
        assert not all(map(torch.equal, starts[unlike], starts[first]))
        assert batches[unlike] != batches[first]


def test_the_loss_is_compared_where_there_is_no_accuracy() -> None:
    from step_cli.commands.compare.outcome import Outcome
    from step_cli.commands.compare.report import report_on
    from step_cli.commands.compare.runs import Run

    config: Any = None
    outcomes = [
        Outcome(Run(recipe, pattern, seed, config), {"eval_loss": loss + 0.1 * seed})
        for seed in (0, 1)
        for recipe, pattern, loss in (("dense", None, 2.0), ("asp", "2:4", 3.0),
                                      ("step", "2:4", 2.5))
    ]  # fmt: skip
    report = report_on(outcomes, ".")
    assert report.metric == "eval_loss" and not report.higher_is_better
    assert report.rows[1].to_dense == pytest.approx(1.0)
    told = [(pair.better, pair.than) for pair in report.pairs]
    assert told == [("dense", "asp"), ("dense", "step"), ("step", "asp")]
    # Better minus than: a lower loss is a negative difference.
    assert report.pairs[2].difference == pytest.approx(-0.5)
    assert report.pairs[2].clear
    with_accuracy = [*outcomes]
    with_accuracy[0] = Outcome(outcomes[0].run, {"eval_loss": 1, "eval_accuracy": 1})
    assert report_on(with_accuracy, ".").metric == "eval_loss"


def test_small_losses_are_shown_with_more_digits() -> None:
    from step_cli.commands.compare.outcome import Outcome
    from step_cli.commands.compare.report import report_on
    from step_cli.commands.compare.runs import Run
    from step_cli.render.compare_page import cells, pair_cells

    config: Any = None
    outcomes = [
        Outcome(Run(recipe, "2:4", 0, config), {"eval_loss": loss})
        for recipe, loss in (("asp", 3.25e-5), ("ste", 3e-5))
    ]
    report = report_on(outcomes, ".")
    assert [row[2] for row in cells(report)] == ["0.00003250", "0.00003000"]
    assert pair_cells(report)[0][1:4] == ["ste", "asp", "-0.00000250"]


def test_models_that_predict_tokens_are_compared_by_their_loss() -> None:
    from step_cli.commands.compare.outcome import Outcome
    from step_cli.commands.compare.report import report_on
    from step_cli.commands.compare.runs import Run

    config: Any = None
    run = Run("ste", "2:4", 0, config)
    classes = {"eval_loss": 1.0, "eval_accuracy": 0.5}
    assert report_on([Outcome(run, classes)], ".").metric == "eval_accuracy"
    tokens = classes | {"eval_perplexity": 2.7}
    assert report_on([Outcome(run, tokens)], ".").metric == "eval_loss"


# -------------------------------------------------------------------- runs that fail


def failing(recipe: str, seed: int, error: Exception) -> Callable[..., Any]:
    real = Trainer._step

    def step(self: Trainer, number: int, *given: Any, **more: Any) -> float:
        sparsity, train = self.config.sparsity, self.config.train
        if (sparsity.recipe, train.seed, number) == (recipe, seed, 10):
            raise error
        return real(self, number, *given, **more)

    return step


def test_a_run_that_fails_does_not_lose_the_others_and_is_tried_again(
    step_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*words(tmp_path), "--recipes", "dense,asp", "--seeds", "2"]
    error = NonFiniteError("step 10: the loss is nan")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", failing("asp", 0, error))
        outcome = step_cli(*argv, "--run-dir", tmp_path / "runs")
    assert outcome.code == 1
    assert "asp-2of4-seed0 does not count: step 10: the loss is nan" in outcome.err
    assert "asp-2of4-seed0: step 10: the loss is nan" in outcome.out
    assert "3 of 4 runs count" in outcome.out and "FAILED" in outcome.out
    for name in ("comparison.md", "comparison.html"):
        assert "the loss is nan" in (tmp_path / "runs" / name).read_text()
    document = read(tmp_path / "runs")
    asp = next(row for row in document["rows"] if row["recipe"] == "asp")
    assert document["ok"] is False
    assert asp["seeds"] == [1] and asp["sd"] is None
    assert asp["failed"] == [
        {"run": "asp-2of4-seed0", "seed": 0, "reason": "step 10: the loss is nan"}
    ]
    pair = next(p for p in document["pairs"] if "asp" in (p["better"], p["than"]))
    assert pair["interval"] is None and pair["clear"] is False
    again = step_cli(*argv, "--run-dir", tmp_path / "runs", "--resume")
    assert again.code == 0
    assert step_cli(*argv, "--run-dir", tmp_path / "straight").code == 0
    assert files(tmp_path / "runs") == files(tmp_path / "straight")


def test_a_run_that_cannot_be_written_ends_the_comparison(
    step_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next one could not be written either."""
    argv = [*words(tmp_path), "--recipes", "dense,asp,ste"]
    with monkeypatch.context() as patch:
        full = OutputError("no space left on device")
        patch.setattr(Trainer, "_step", failing("asp", 0, full))
        outcome = step_cli(*argv, "--run-dir", tmp_path / "runs")
    assert outcome.code == 5 and "asp-2of4-seed0: no space left" in outcome.error
    assert runs(tmp_path / "runs") == ["dense-seed0"]
    rows = read(tmp_path / "runs")["rows"]
    assert [len(row["values"]) for row in rows] == [1, 0, 0]
    assert step_cli(*argv, "--run-dir", tmp_path / "runs", "--resume").code == 0


def test_a_process_that_fails_alone_does_not_wait_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are within a step, and would take its message for one of theirs."""
    from contextlib import nullcontext

    from step_cli.commands.compare import run as compare_module
    from step_cli.training.distributed import Processes

    def fails(*given: object, **more: object) -> None:
        raise NonFiniteError("alone")

    monkeypatch.setattr(Processes, "gathered", None)
    monkeypatch.setattr(compare_module, "_one", fails)
    monkeypatch.setattr(
        compare_module, "stop_on_request", lambda given: nullcontext(lambda: False)
    )
    second = Processes(torch.device("cpu"), "ddp", rank=1, size=2)
    run = compare_module.Run("asp", "2:4", 0, None)  # type: ignore[arg-type]
    session = compare_module._Session([run], tmp_path, second, None)
    with pytest.raises(NonFiniteError, match="alone"):
        compare_module._train_all(session, {})


def test_a_switch_that_never_comes_fails_its_run(step_cli: Cli, tmp_path: Path) -> None:
    argv = words(tmp_path, "switch.t_max=24")
    argv += ["--recipes", "dense,step", "--run-dir", str(tmp_path / "runs")]
    outcome = step_cli(*argv, "--json")
    assert outcome.code == 1 and outcome.json["ok"] is False
    (failed,) = outcome.json["rows"][1]["failed"]
    assert "the switch was never reached in 24 steps" in failed["reason"]
    assert "its lowest value was" in failed["reason"]
    assert outcome.json["rows"][1]["mean"] is None
    assert outcome.json["rows"][0]["mean"] is not None
    whole = files(tmp_path / "runs")
    assert step_cli(*argv, "--resume").code == 1  # from step 24: that of all steps
    assert files(tmp_path / "runs") == whole


def test_weights_that_break_their_pattern_fail_their_run(
    step_cli: Cli, tmp_path: Path
) -> None:
    from safetensors import safe_open
    from safetensors.numpy import save_file

    argv = [*words(tmp_path), "--recipes", "asp", "--run-dir", tmp_path / "runs"]
    assert step_cli(*argv).code == 0
    good = files(tmp_path / "runs")
    path = tmp_path / "runs" / "asp-2of4-seed0" / "model" / "model.safetensors"
    with safe_open(path, "numpy") as file:
        metadata, names = file.metadata(), file.keys()
        tensors = {name: file.get_tensor(name) for name in names}
    tensors["1.weight"][0, :4] = 1.0
    save_file(tensors, path, metadata)
    run = outcome_module.Run("asp", "2:4", 0, None)  # type: ignore[arg-type]
    found = outcome_module.outcome_of(run, path.parents[1])
    assert found.reason == "1 groups of its weights break their pattern"
    path.write_bytes(b"torn")
    found = outcome_module.outcome_of(run, path.parents[1])
    assert found.reason and not found.metrics
    (path.parents[1] / "report.json").write_text('{"ok": true}')
    found = outcome_module.outcome_of(run, path.parents[1])
    assert found.reason == "report.json: recipe is missing or wrong"
    assert step_cli(*argv, "--resume").code == 0  # its end is made again
    assert files(tmp_path / "runs") == good
    assert outcome_module.outcome_of(run, path.parents[1]).reason is None


def test_a_bug_in_one_run_is_told_after_what_was_done_is_written(
    step_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = [*words(tmp_path), *FEW, "--run-dir", tmp_path / "runs"]
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_step", failing("asp", 0, RuntimeError("oh")))
        outcome = step_cli(*argv)
    assert outcome.code == 70
    document = read(tmp_path / "runs")
    assert document["ok"] is False and document["rows"][0]["mean"] is not None
    assert document["rows"][1]["failed"][0]["reason"] == "was not trained"
    assert step_cli(*argv, "--resume").code == 0


def test_results_that_cannot_be_written_end_with_5(
    step_cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from step_cli.commands.compare import page

    def full(*given: object) -> None:
        raise OutputError("no space left")

    argv = [*words(tmp_path), *FEW, "--run-dir", tmp_path / "runs"]
    with monkeypatch.context() as patch:
        patch.setattr(page, "save_text", full)
        assert step_cli(*argv).code == 5
    assert runs(tmp_path / "runs") == ["asp-2of4-seed0", "dense-seed0"]
    assert step_cli(*argv, "--resume").code == 0


# ------------------------------------------------------------------------- progress


def test_the_log_tells_which_run_it_is_and_what_is_left(
    step_cli: Cli, tmp_path: Path
) -> None:
    argv = [*words(tmp_path), *FEW, "--run-dir", tmp_path / "runs"]
    told = step_cli(*argv).err
    assert "note: run 1 of 2, dense-seed0\n" in told
    assert "run 2 of 2, asp-2of4-seed0, step 24 of 24, fine-tune" in told
    assert told.count("left for all") >= 2
    assert told.count("stay dense") <= 1


def test_nothing_of_a_run_stays_in_memory(
    tmp_path: Path, step_cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looks at tensors, not at resident pages: an allocator may keep pages."""
    from step_cli.commands.compare import run as compare_module

    made: list[StorageWeakRef] = []
    alive: list[tuple[bool, int]] = []  # any were made; how many of them still live

    def seen(optimizer: torch.optim.Optimizer, *given: object) -> None:
        for values in optimizer.state.values():
            tensors = [x for x in values.values() if isinstance(x, torch.Tensor)]
            made.extend(StorageWeakRef(x.untyped_storage()) for x in tensors)
        for group in optimizer.param_groups:
            made.extend(StorageWeakRef(x.untyped_storage()) for x in group["params"])

    def measured(**given: bool) -> None:
        forget(**given)
        alive.append((bool(made), sum(not x.expired() for x in made)))

    forget = compare_module.forget
    monkeypatch.setattr(compare_module, "forget", measured)
    argv = words(tmp_path, "train.steps=4", "train.eval_every=4", "switch.t_max=2",
                 "switch.t_min=1")  # fmt: skip
    argv += ["--recipes", "dense,step,sr-ste", "--seeds", "2"]
    watched = register_optimizer_step_post_hook(seen)
    try:
        assert step_cli(*argv, "--run-dir", tmp_path / "runs").code == 0
    finally:
        watched.remove()
    assert alive == [(True, 0)] * 6
