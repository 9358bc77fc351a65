"""Whether a run goes on as it began: with the same configuration and data.

``data.json`` of the run directory tells which data it began with.
"""

import json
from pathlib import Path

from step_cli.config.train import TrainConfig, keys_of, load_config
from step_cli.data.batch import Dataset, fingerprint_of
from step_cli.errors import InputError
from step_cli.formats.files.json_text import read_json
from step_cli.training.records import save_text

FILE = "data.json"
SCHEMA = "step-cli/data/1"
LIMIT = 1 << 20  # bytes of the file
SPLITS = {"train": "to train on", "held_out": "held out"}


def record_data(run_dir: Path, data: Dataset) -> None:
    """Write down what tells these data from others."""
    document = {"schema": SCHEMA, **fingerprint_of(data)}
    save_text(run_dir / FILE, json.dumps(document, indent=2) + "\n")


def refuse_other_data(run_dir: Path, data: Dataset) -> None:
    """Refuse to go on with other data than the run began with.

    Raises:
        InputError: They are others, or there is no record.
    """
    begun = read_json(run_dir / FILE, "a record of data", limit_bytes=LIMIT)
    for split, now in fingerprint_of(data).items():
        then = begun.get(split)
        if now == then:
            continue
        purpose = SPLITS[split]
        was = then.get("samples") if isinstance(then, dict) else None
        found = f"{now['samples']} samples {purpose}, were {was}"
        if now["samples"] == was:
            found = f"the {was} samples {purpose} are others than they were"
        raise InputError(
            f"not the data the run began with: {found}; it would not go on bit for bit",
            file=run_dir,
        )


def refuse_other_config(config: TrainConfig, run_dir: Path) -> None:
    """Refuse to go on with another configuration than the run began with.

    Raises:
        InputError: There is no run, or keys differ.
    """
    path = run_dir / "config.toml"
    if not path.is_file():
        raise InputError("nothing to resume: no run was begun here", file=run_dir)
    ours, theirs = dict(keys_of(config)), dict(keys_of(load_config(path)))
    differ = [
        f"{key} is {ours.get(key)!r}, was {theirs.get(key)!r}"
        for key in sorted(ours.keys() | theirs.keys())
        if ours.get(key) != theirs.get(key)
    ]
    if differ:
        raise InputError(f"another configuration: {'; '.join(differ)}", file=run_dir)
