"""WordNet as English text, and the weights of a GPT-2 that has learned another text.

    python benchmarks/evidence/retext/data.py OUT

Writes OUT/wordnet/train.bin and OUT/wordnet/valid.bin, OUT/about.json with the SHA-256
of both, and OUT/start/model: the weights of a dense run on the text of the task `text`,
by `start.toml`, which is trained if it is not there, in a minute or two.
"""

import argparse
import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np

WORDNET = Path("/usr/share/wordnet")  # where Debian's wordnet-base puts it
HERE = Path(__file__).parent
TEXT = HERE.parent / "text"  # the task on whose text the weights were trained
SHUFFLE_SEED = 19
WEIGHTS = "model/model.safetensors"  # of a run directory
START_SEED = 100  # none of the seeds that count
HELD_OUT_BYTES = 512 * 128 + 1  # 512 samples of 128 bytes and the label of the last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    lines = entries(WORDNET)
    random.Random(SHUFFLE_SEED).shuffle(lines)
    text = "".join(lines).encode()
    # A line that is cut belongs to what is held out, with what comes before the cut.
    end = text.index(b"\n", HELD_OUT_BYTES) + 1
    texts = {"train.bin": text[end:], "valid.bin": text[:HELD_OUT_BYTES]}
    write(out / "wordnet", texts)
    train_start(out)
    write_about(out, texts)


def entries(wordnet: Path) -> list[str]:
    """Every synset as a line, its words and its gloss, in WordNet's order.

    Where several synsets have one gloss, only the first is kept, so that nothing held
    out is trained on.
    """
    lines: dict[str, str] = {}
    for part in ("noun", "verb", "adj", "adv"):
        path = wordnet / f"data.{part}"
        if not path.is_file():
            sys.exit(f"error: {path}: not there, install Debian's package wordnet-base")
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):
                continue  # the licence
            fields, _, gloss = line.partition(" | ")
            gloss = gloss.strip()
            lines.setdefault(gloss.casefold(), f"{words_of(fields)}: {gloss}\n")
    return list(lines.values())


def words_of(fields: str) -> str:
    """The words of a synset, as a line of ``data.*`` lists them: wndb(5WN)."""
    parts = fields.split(" ")
    count = int(parts[3], 16)
    words = (word.partition("(")[0] for word in parts[4 : 4 + 2 * count : 2])
    return ", ".join(word.replace("_", " ") for word in words)


def write(folder: Path, texts: dict[str, bytes]) -> None:
    """Write the texts, each byte as a number of 16 bits."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        np.frombuffer(text, np.uint8).astype("<u2").tofile(folder / name)


def write_about(out: Path, texts: dict[str, bytes]) -> None:
    """Tell what was made; the weights differ between processors in their last bits."""
    made = {**texts, "start": (out / "start" / WEIGHTS).read_bytes()}
    about = {
        "bytes": {name: len(data) for name, data in made.items()},
        "sha256": {n: hashlib.sha256(data).hexdigest() for n, data in made.items()},
    }
    (out / "about.json").write_text(json.dumps(about, indent=2) + "\n")


def train_start(out: Path) -> None:
    """Train the weights that runs start from, unless they are there."""
    if (out / "start" / WEIGHTS).is_file():
        return
    subprocess.run([sys.executable, TEXT / "data.py", out / "text"], check=True)
    command = [sys.executable, "-m", "step_cli", "--quiet", "train"]
    command += [HERE / "start.toml", "--run-dir", out / "start", "--force"]
    command += ["--set", f"data.source={out / 'text' / 'stdlib'}"]
    command += ["--set", f"train.seed={START_SEED}"]
    # As the runs that follow, which are compared with one another.
    alone = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, env=alone)


if __name__ == "__main__":
    main()
