"""Calibration samples from a local file: text, JSON lines, or arrays in ``.npz``."""

import inspect
import re
import zipfile
from array import array
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from step_cli.data.rows import lines_of, rows_of
from step_cli.data.tokens import Tokenizer, make_tokenizer
from step_cli.errors import InputError, NonFiniteError, UsageError
from step_cli.formats.files.mapped_file import in_units, map_file, reason_of
from step_cli.formats.huggingface.model_config import longest_input
from step_cli.models.runnable import RunnableModel

Sample = dict[str, npt.NDArray[Any]]  # one input of the model, without a batch

LONGEST = 2048  # tokens of a sample
LARGEST = 4 << 30  # bytes of all arrays
TOKENS_READ = 1 << 24  # of a text: enough for any number of samples
LINES = 1000  # tokenized at a time
NUMBERS = {"i": 1 << 12, "f": 1 << 20}  # of an input in one batch
BYTE_VOCABULARY = 256
# Inputs that say where the others count.
_PLACES = re.compile(r"mask|position|token_type|segment|length")


def read_batches(
    path: Path, runnable: RunnableModel, *, most: int, tokenizer: Path | None
) -> list[dict[str, Tensor]]:
    """Read samples and join them to batches of equal shapes.

    Args:
        path: The file; read by its suffix.
        runnable: The model they are for.
        most: How many samples to use; of more, evenly spaced ones.
        tokenizer: A Hugging Face directory with the tokenizer of the model.

    Raises:
        InputError: The file cannot be read, holds no sample, or one does not fit, or
            all of them are zero.
        NonFiniteError: A sample holds NaN or infinity, also once it is fp32.
        UsageError: It is text, and which numbers stand for it is not known.
    """
    if path.suffix == ".npz":
        samples = _from_arrays(path)
    elif path.suffix in (".jsonl", ".json"):
        samples = _from_rows(path, runnable, tokenizer)
    else:
        samples = _from_text(_lines(path), runnable, tokenizer)
    if not samples:
        raise InputError("holds no calibration sample", file=path)
    _check_names(samples, runnable.model, path)
    _refuse_nonfinite(samples, path)
    numbers = np.linspace(0, len(samples) - 1, min(most, len(samples))).round()
    chosen = [samples[int(i)] for i in numbers]
    _refuse_zeros(chosen, path)
    return list(_batches(chosen))


def _from_arrays(path: Path) -> list[Sample]:
    """Arrays named as the model's inputs are; the first axis counts samples."""
    map_file(path)  # its error is clear for a file that cannot be read
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(info.file_size for info in archive.infolist())
        if size > LARGEST:
            raise InputError(f"{in_units(size)}, limit {in_units(LARGEST)}", file=path)
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"no archive of arrays: {reason_of(error)}", file=path
        ) from None
    counts = {len(value) if value.ndim else 0 for value in arrays.values()}
    if len(counts) > 1:
        shapes = ", ".join(f"{name} {list(v.shape)}" for name, v in arrays.items())
        raise InputError(f"numbers of samples differ: {shapes}", file=path)
    (count,) = counts or {0}
    return [
        {name: value[number] for name, value in arrays.items()}
        for number in range(count)
    ]


def _from_rows(
    path: Path, runnable: RunnableModel, tokenizer: Path | None
) -> list[Sample]:
    """Objects with a ``text``, or with the model's inputs as lists of numbers."""
    samples: list[Sample] = []
    texts: list[str] = []
    for row in rows_of(path):
        if row.error is not None:
            raise InputError(f"{row.place}: {row.error}", file=path)
        if isinstance(row.values.get("text"), str):
            texts.append(row.values["text"] + "\n")
            continue
        try:
            arrays = {name: np.array(value) for name, value in row.values.items()}
        except ValueError:  # lists of different lengths
            arrays = {}
        if not arrays or any(
            value.dtype.kind not in "iufb" for value in arrays.values()
        ):
            raise InputError(
                f"{row.place}: neither a 'text' nor lists of numbers", file=path
            )
        samples.append(arrays)
    return samples + (_from_text(texts, runnable, tokenizer) if texts else [])


def _lines(path: Path) -> Iterator[str]:
    map_file(path)
    for line in lines_of(path):
        yield line + "\n"


def _from_text(
    texts: Iterator[str] | Sequence[str],
    runnable: RunnableModel,
    tokenizer: Path | None,
) -> list[Sample]:
    """All text in a row, cut into samples as long as the model takes."""
    known, tokens = _tokenizer(runnable, tokenizer), array("q")
    waiting = iter(texts)
    while len(tokens) < TOKENS_READ and (chunk := list(islice(waiting, LINES))):
        for found in known.encode(chunk):
            tokens.extend(found)
    length = min(_context(runnable), len(tokens))
    row = np.frombuffer(tokens, np.int64)
    return [
        {"input_ids": row[start : start + length]}
        for start in range(0, len(row) - length + 1, max(1, length))
    ]


def _tokenizer(runnable: RunnableModel, directory: Path | None) -> Tokenizer:
    if directory is not None and any(directory.glob("*token*")):
        return make_tokenizer(str(directory))
    config = getattr(runnable.model, "config", None)
    if getattr(config, "vocab_size", None) == BYTE_VOCABULARY:
        return make_tokenizer(None)
    raise UsageError(
        "--calibration: text needs the model's tokenizer, which is not there; give "
        'token numbers as JSON lines, {"input_ids": [1, 2, 3]}, or as .npz'
    )


def _context(runnable: RunnableModel) -> int:
    """How many tokens the model takes."""
    if (found := longest_input(runnable.model)) is not None:
        return min(found, LONGEST)
    example = (runnable.examples or {}).get("input_ids")
    return LONGEST if example is None else example.shape[-1]


def _check_names(samples: Sequence[Sample], model: nn.Module, path: Path) -> None:
    parameters = inspect.signature(model.forward).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for number, sample in enumerate(samples):
        for name, value in sample.items():
            if name not in parameters and not takes_any:
                raise InputError(
                    f"sample {number}: the model takes no {name!r}, it takes "
                    f"{', '.join(list(parameters)[:8])}",
                    file=path,
                )
            if value.dtype.kind not in "iufb":
                raise InputError(
                    f"sample {number}: {name} is of dtype {value.dtype}, not numbers",
                    file=path,
                )


def _refuse_nonfinite(samples: Sequence[Sample], path: Path) -> None:
    for number, sample in enumerate(samples):
        for name, value in sample.items():
            if value.dtype.kind != "f":
                continue
            with np.errstate(over="ignore"):
                finite = np.isfinite(value.astype(np.float32, copy=False))
            if not finite.all():
                index = np.unravel_index(int(finite.argmin()), finite.shape)
                found = value[index]
                what = f"{found} is too large for fp32" if np.isfinite(found) else found
                raise NonFiniteError(
                    f"sample {number}: {name}{[int(i) for i in index]} is {what}; "
                    "mend the calibration data",
                    file=path,
                )


def _refuse_zeros(samples: Sequence[Sample], path: Path) -> None:
    """What says where and not what, such as a mask, may be zero or not."""
    looked = [
        value
        for sample in samples
        for name, value in sample.items()
        if value.dtype.kind != "b" and not _PLACES.search(name)
    ]
    if looked and not any(value.any() for value in looked):
        raise InputError(
            f"every number of all {len(samples)} samples is zero, which tells nothing "
            "of what layers see; give samples of real data",
            file=path,
        )


def _batches(samples: Sequence[Sample]) -> Iterator[dict[str, Tensor]]:
    """Neighbours of equal shapes together, as many as memory allows."""
    waiting: list[Sample] = []
    for sample in samples:
        if waiting and (_shapes(sample) != _shapes(waiting[0]) or _full(waiting)):
            yield _joined(waiting)
            waiting = []
        waiting.append(sample)
    yield _joined(waiting)


def divided(
    batches: Sequence[Mapping[str, Tensor]], parts: int
) -> list[dict[str, Tensor]]:
    """Smaller batches: about ``parts`` in all, of one sample at least."""
    count = sum(_length(batch) for batch in batches)
    size = max(1, count // parts)
    return [
        {name: value[start : start + size] for name, value in batch.items()}
        for batch in batches
        for start in range(0, _length(batch), size)
    ]


def evened(batches: Sequence[Mapping[str, Tensor]]) -> list[dict[str, Tensor]]:
    """Neighbours of equal shapes in batches whose sizes differ by one at most."""
    even: list[dict[str, Tensor]] = []
    for _, group in groupby(batches, lambda b: {k: v.shape[1:] for k, v in b.items()}):
        alike = list(group)
        joined = {name: torch.cat([b[name] for b in alike]) for name in alike[0]}
        pieces = {k: torch.tensor_split(v, len(alike)) for k, v in joined.items()}
        even += [
            {name: piece[i] for name, piece in pieces.items()}
            for i in range(len(alike))
        ]
    return even


def _length(batch: Mapping[str, Tensor]) -> int:
    return len(next(iter(batch.values())))


def _shapes(sample: Sample) -> Mapping[str, tuple[int, ...]]:
    return {name: value.shape for name, value in sample.items()}


def _full(samples: Sequence[Sample]) -> bool:
    return any(
        value.size * (len(samples) + 1)
        > NUMBERS["f" if value.dtype.kind == "f" else "i"]
        for value in samples[0].values()
    )


def _joined(samples: Sequence[Sample]) -> dict[str, Tensor]:
    """Integers as int64 and numbers as fp32: what a model computes with."""
    joined = {}
    for name in samples[0]:
        values = np.stack([sample[name] for sample in samples])
        kind = {"f": np.float32, "b": np.bool_}.get(values.dtype.kind, np.int64)
        joined[name] = torch.from_numpy(values.astype(kind))
    return joined
