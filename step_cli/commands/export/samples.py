"""The samples of `--calibration` as inputs of an exported graph.

torch is imported once there are some: an engine of an ONNX file needs none.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from step_cli.commands.export.model import LoadedModel
from step_cli.config.commands import ExportConfig
from step_cli.errors import InputError
from step_cli.formats.huggingface.model import is_hugging_face
from step_cli.formats.onnx.inputs import GraphInput
from step_cli.render.status_line import working_on

Array = npt.NDArray[Any]
Feeds = dict[str, Array]
HELD_OUT = 5  # every fifth sample is not calibrated with
BATCH = 16  # samples at once, where the graph takes any number


@dataclass(frozen=True)
class Samples:
    """Inputs of the graph, a run each.

    Attributes:
        calibration: Those that ranges are measured on.
        held_out: Those that are compared only.
        calibration_count: How many samples the first are.
        held_out_count: How many the others are.
    """

    calibration: list[Feeds]
    held_out: list[Feeds]
    calibration_count: int
    held_out_count: int


@working_on("reading samples")
def read_samples(config: ExportConfig, loaded: LoadedModel) -> Samples:
    """Read the samples, and put every fifth aside.

    Args:
        config: The options.
        loaded: The model.

    Raises:
        InputError: The file cannot be read, or its samples do not fit the graph.
        NonFiniteError: A sample holds NaN or infinity.
        UsageError: It is text, and the model's tokenizer is not known.
    """
    from step_cli.models.runnable import RunnableModel
    from step_cli.oneshot.samples import read_batches

    assert config.calibration is not None
    directory = Path(loaded.spec)
    batches = read_batches(
        config.calibration,
        RunnableModel(loaded.model, {}, loaded.examples),
        most=config.calibration_samples,
        tokenizer=directory if is_hugging_face(directory) else None,
    )
    samples = [
        {name: value[i : i + 1].numpy() for name, value in batch.items()}
        for batch in batches
        for i in range(len(next(iter(batch.values()))))
    ]
    given = [fitted(sample, loaded.inputs, config.calibration) for sample in samples]
    aside = [one for i, one in enumerate(given) if i % HELD_OUT == HELD_OUT - 1]
    used = [one for i, one in enumerate(given) if i % HELD_OUT != HELD_OUT - 1]
    size = _batch_size(loaded.inputs)
    return Samples(
        list(_runs(used, size)), list(_runs(aside, size)), len(used), len(aside)
    )


def fitted(sample: Feeds, inputs: Sequence[GraphInput], file: Path) -> Feeds:
    """One sample with all inputs of the graph and no others, in its types."""
    known = {given.name: given for given in inputs}
    for name in sample:
        if name not in known:
            raise InputError(
                f"samples hold {name}, which is no input of the graph; it takes "
                f"{', '.join(known)}: see --input",
                file=file,
            )
    return {name: _array(sample, given, file) for name, given in known.items()}


def _array(sample: Feeds, given: GraphInput, file: Path) -> Array:
    found = sample.get(given.name)
    if found is None:
        first = next(iter(sample.values()))
        if "mask" not in given.name or first.ndim != len(given.shape):
            raise InputError(f"samples hold no {given.name}", file=file)
        found = np.ones_like(first)  # nothing is masked
    fits = found.ndim == len(given.shape) and all(
        isinstance(wanted, str) or wanted == size
        for wanted, size in zip(given.shape[1:], found.shape[1:], strict=True)
    )
    if not fits:
        raise InputError(
            f"a sample of {given.name} has shape {list(found.shape[1:])}, the graph "
            f"takes {','.join(map(str, given.shape[1:]))}: see --input",
            file=file,
        )
    cast = found.astype(given.dtype)
    if cast.dtype.kind in "iu" and not np.array_equal(cast, found):
        raise InputError(
            f"a sample of {given.name} holds numbers that are not whole, or too large; "
            f"the graph takes {given.dtype}",
            file=file,
        )
    return cast


def _batch_size(inputs: Sequence[GraphInput]) -> int | None:
    """How many samples the graph takes at once; None: any number."""
    sizes = {given.shape[0] for given in inputs}
    numbers = [size for size in sizes if isinstance(size, int)]
    return min(numbers) if numbers else None


def _runs(samples: Sequence[Feeds], size: int | None) -> Iterator[Feeds]:
    """Samples of equal shapes together; the last run is filled up with the first."""
    alike: dict[Any, list[Feeds]] = {}
    for sample in samples:
        alike.setdefault(tuple(x.shape for x in sample.values()), []).append(sample)
    for some in alike.values():
        step = size or BATCH
        for start in range(0, len(some), step):
            run = some[start : start + step]
            if size is not None:
                run += [some[i % len(some)] for i in range(size - len(run))]
            yield _joined(run)


def _joined(samples: Sequence[Mapping[str, Array]]) -> Feeds:
    return {
        name: np.concatenate([sample[name] for sample in samples])
        for name in samples[0]
    }
