"""``[data]`` of the configuration, checked before torch is imported."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from pydantic import Field, field_validator, model_validator

from step_cli.config import Config
from step_cli.errors import nearest


@dataclass(frozen=True)
class BuiltIn:
    """Data that comes with a sample model.

    Attributes:
        sample: The sample model; its ``data.py`` has ``load(section) -> Dataset``.
        keys: The keys of ``[data]`` that it heeds.
    """

    sample: str
    keys: tuple[str, ...] = ()


BUILT_IN: Mapping[str, BuiltIn] = {
    "digits": BuiltIn("digits-resnet"),
    "stdlib": BuiltIn("stdlib-gpt"),
}


class DataSection(Config):
    """What the model is trained on."""

    source: str = Field(description="Name of a built-in data set")
    length: int | None = Field(None, ge=1, description="Tokens of a sample")

    @field_validator("source")
    @classmethod
    def _is_known(cls, source: str) -> str:
        if source not in BUILT_IN:
            raise ValueError(f"no such data {source!r}{nearest(source, BUILT_IN)}")
        return source

    @model_validator(mode="after")
    def _keys_apply(self) -> Self:
        known = ("source", *BUILT_IN[self.source].keys)
        for key, value in self:
            if value is not None and key not in known:
                raise ValueError(f"{key} does not apply to {self.source!r}")
        return self
