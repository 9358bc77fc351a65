"""From ``[data]`` of the configuration to what is trained on."""

from step_cli.data.batch import Dataset
from step_cli.data_config import BUILT_IN, DataSection
from step_cli.samples import load_sample


def load_data(section: DataSection) -> Dataset:
    """Load the data that ``section`` describes.

    Raises:
        MissingError: A library it needs is not installed.
    """
    module = load_sample(BUILT_IN[section.source].sample, "data")
    dataset = module.load(section)
    assert isinstance(dataset, Dataset)
    return dataset
