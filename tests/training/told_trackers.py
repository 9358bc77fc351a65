"""What trackers were told of a run: by stand-ins for their libraries, or by their own.

The stand-ins take what step-cli calls, and nothing else, so that a call that a library
does not know fails here too.
"""

import json
import os
import struct
import types
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

BLOCK = 32768  # bytes of a block of wandb's log


@dataclass
class Told:
    """One run of a tracker."""

    config: dict[str, Any] = field(default_factory=dict)
    numbers: dict[str, dict[int, float]] = field(
        default_factory=lambda: defaultdict(dict)
    )
    facts: dict[str, Any] = field(default_factory=dict)
    states: list[str] = field(default_factory=list)  # in which it was left, in turn

    def log(self, values: dict[str, Any], step: int) -> None:
        for tag, value in values.items():
            if isinstance(value, str):
                self.facts[tag] = value
            else:
                self.numbers[tag][step] = value


Runs = dict[str, Told]


def flat(config: dict[str, Any]) -> dict[str, Any]:
    return {f"{s}.{k}": v for s, values in config.items() for k, v in values.items()}


def module(name: str, **members: Any) -> Any:
    made: Any = types.ModuleType(name)
    for key, value in members.items():
        setattr(made, key, value)
    return made


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("the server went away\nand more lines")


# ------------------------------------------------------------------------- stand-ins


def fake_wandb(runs: Runs) -> dict[str, Any]:
    class Run:
        def __init__(self, name: str) -> None:
            self.id, self.summary = name, runs[name].facts

        def log(self, values: dict[str, Any], *, step: int) -> None:
            runs[self.id].log(values, step)

        def finish(self, *, exit_code: int) -> None:
            runs[self.id].states.append("stopped" if exit_code else "finished")

    def init(
        *, project: str, name: str, dir: str, id: str | None, resume: str | None,
        mode: str | None, config: Any, reinit: str, settings: Any,
    ) -> Run:  # fmt: skip
        assert (mode == "offline") == ("WANDB_MODE" not in os.environ)
        assert Path(dir).is_dir() and settings == {"silent": True, "console": "off"}
        made = id or f"id{len(runs)}"
        runs.setdefault(made, Told(config=flat(config)))
        runs[made].facts |= {"project": project, "name": name}
        return Run(made)

    return {"wandb": module("wandb", init=init, Settings=dict)}


class Param(NamedTuple):
    key: str
    value: str


class Metric(NamedTuple):
    key: str
    value: float
    timestamp: int
    step: int


def fake_mlflow(runs: Runs) -> dict[str, Any]:
    class MlflowClient:
        def __init__(self, *, tracking_uri: str) -> None:
            own = "MLFLOW_TRACKING_URI" not in os.environ
            assert tracking_uri.startswith("sqlite:////") == own

        def get_experiment_by_name(self, name: str) -> None:
            assert name == "step-cli"

        def create_experiment(self, name: str, *, artifact_location: Any) -> str:
            return name

        def create_run(self, experiment_id: str, *, run_name: str) -> Any:
            made = f"id{len(runs)}"
            runs[made] = Told(facts={"project": experiment_id, "name": run_name})
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id=made))

        def update_run(self, run_id: str, *, status: str) -> None:
            assert runs[run_id].states and status == "RUNNING"

        def log_batch(self, run_id: str, params: Any = (), metrics: Any = ()) -> None:
            assert len(params) <= 100
            runs[run_id].config |= dict(params)
            for metric in metrics:
                runs[run_id].log({metric.key: metric.value}, metric.step)

        def set_tag(self, run_id: str, key: str, value: str) -> None:
            runs[run_id].facts[key] = value

        def set_terminated(self, run_id: str, *, status: str) -> None:
            known = {"FINISHED": "finished", "KILLED": "stopped"}
            runs[run_id].states.append(known[status])

    entities = module("mlflow.entities", Param=Param, Metric=Metric)
    whole = module("mlflow", MlflowClient=MlflowClient, entities=entities)
    return {"mlflow": whole, "mlflow.entities": entities}


def fake_trackio(runs: Runs) -> dict[str, Any]:
    now: list[str] = []

    class Run:
        def __init__(self, name: str) -> None:
            self.name = name

        def log(self, values: dict[str, Any], *, step: int) -> None:
            runs[self.name].log(values, step)

    def init(*, project: str, name: str, resume: str, config: Any, embed: bool) -> Run:
        print("* Trackio project initialized")  # it does
        assert (name in runs) == (resume == "must") and not embed
        runs.setdefault(name, Told(config=flat(config), facts={"project": project}))
        now[:] = [name]
        return Run(name)

    def finish() -> None:
        print("* Run finished")
        runs[now[0]].states.append("ended")

    return {"trackio": module("trackio", init=init, finish=finish)}


FAKES = {"wandb": fake_wandb, "mlflow": fake_mlflow, "trackio": fake_trackio}

# ------------------------------------------------------------ the libraries' own stores


def wandb_runs(run_dir: Path) -> Runs:
    """All of wandb's offline files, of which each part of a run has one."""
    from wandb.proto.wandb_internal_pb2 import Record

    runs: Runs = defaultdict(Told)
    for file in sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb")):
        told = runs[file.stem.removeprefix("run-")]
        for data in records_of(file.read_bytes()):
            record = Record.FromString(data)
            if record.WhichOneof("record_type") == "run":
                for item in record.run.config.update:
                    told.config |= flat({item.key: json.loads(item.value_json)})
            for item in record.summary.update:
                told.facts[item.key] = json.loads(item.value_json)
            values = {
                "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                for item in record.history.item
            }
            if values:
                told.log(values, record.history.step.num)
    return runs


def records_of(data: bytes) -> Iterator[bytes]:
    """The records of a log in LevelDB's format, after its header of 7 bytes."""
    at, parts = 7, b""
    while at + 7 <= len(data):
        left = BLOCK - at % BLOCK
        if left < 7:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def mlflow_runs(run_dir: Path) -> Runs:
    import mlflow

    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{run_dir / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("step-cli")
    runs: Runs = {}
    for found in client.search_runs([experiment.experiment_id]):
        told = runs[found.info.run_id] = Told(config=dict(found.data.params))
        told.facts |= found.data.tags | {"name": found.info.run_name}
        told.states = [found.info.status.lower()]
        for key in found.data.metrics:
            for metric in client.get_metric_history(found.info.run_id, key):
                told.log({key: metric.value}, metric.step)
    return runs


def trackio_runs(run_dir: Path) -> Runs:
    from trackio.sqlite_storage import SQLiteStorage

    runs: Runs = {}
    for name in SQLiteStorage.get_runs("step-cli"):
        told = runs[name] = Told()
        told.config = flat(
            {
                key: values
                for key, values in SQLiteStorage.get_run_config(
                    "step-cli", name
                ).items()
                if isinstance(values, dict)
            }
        )
        for line in SQLiteStorage.get_logs("step-cli", name):
            values = {k: v for k, v in line.items() if isinstance(v, int | float | str)}
            told.log(values, line["step"])
    return runs


REAL = {"wandb": wandb_runs, "mlflow": mlflow_runs, "trackio": trackio_runs}
