"""From ``[data]`` of the configuration to what is trained on."""

from collections.abc import Callable, Mapping
from pathlib import Path

from step_cli.config.data import BUILT_IN, DataSection, Kind
from step_cli.config.samples import load_sample
from step_cli.data.batch import Dataset
from step_cli.data.cifar import load_cifar10, load_cifar100
from step_cli.data.files import kind_of, os_error_as_input_error
from step_cli.data.images import load_images
from step_cli.data.parallel import load_parallel
from step_cli.data.said import say_what_is_found
from step_cli.data.table import load_table
from step_cli.data.text import load_text
from step_cli.render.status_line import working_on

LOADERS: Mapping[Kind, Callable[[DataSection], Dataset]] = {
    "cifar10": load_cifar10,
    "cifar100": load_cifar100,
    "images": load_images,
    "table": load_table,
    "text": load_text,
    "parallel": load_parallel,
}


def load_data(section: DataSection) -> Dataset:
    """Load the data that ``section`` describes, and say what is found at a path.

    Raises:
        InputError: It cannot be read as its kind.
        UsageError: A key does not apply to it.
        MissingError: A library it needs is not installed.
    """
    with working_on(f"reading data of {section.source}"):
        return _loaded(section)


def _loaded(section: DataSection) -> Dataset:
    if section.source not in BUILT_IN:
        with os_error_as_input_error(Path(section.source)):
            found = LOADERS[kind_of(section)](section)
            say_what_is_found(found, section.source)
            return found
    module = load_sample(BUILT_IN[section.source].sample, "data")
    dataset = module.load(section)
    assert isinstance(dataset, Dataset)
    return dataset
