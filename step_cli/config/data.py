"""``[data]`` of the configuration, checked before torch is imported."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from step_cli.config.types import Config
from step_cli.errors import nearest

Kind = Literal["cifar10", "cifar100", "images", "table", "text", "parallel"]

BYTES = "bytes"  # the tokenizer that needs no file

# The keys that apply to each kind, besides source and kind.
KEYS_OF: Mapping[Kind, tuple[str, ...]] = {
    "cifar10": ("augment",),
    "cifar100": ("augment",),
    "images": ("augment", "held_out", "image_size"),
    "table": (
        "held_out", "label_column", "length", "skip_bad_rows", "text_columns",
        "tokenizer",
    ),
    "text": ("held_out", "length", "text_columns", "tokenizer"),
    "parallel": ("held_out", "languages", "length", "tokenizer"),
}  # fmt: skip


@dataclass(frozen=True)
class BuiltIn:
    """Data that comes with a sample model.

    Attributes:
        sample: The sample model; its ``data.py`` has ``load(section) -> Dataset``.
        keys: The keys of ``[data]`` that apply to it, besides the source.
    """

    sample: str
    keys: tuple[str, ...] = ()


BUILT_IN: Mapping[str, BuiltIn] = {
    "digits": BuiltIn("digits-resnet"),
    "numbers": BuiltIn("translate-tiny"),
    "stdlib": BuiltIn("stdlib-gpt"),
    "stdlib-modules": BuiltIn("stdlib-bert"),
}


def _path_or_share(value: object) -> object:
    if (isinstance(value, str) and value) or (
        isinstance(value, float) and 0 < value < 1
    ):
        return value
    raise ValueError(f"expected a path, or a share between 0 and 1, got {value!r}")


PathOrShare = Annotated[float | str, BeforeValidator(_path_or_share)]
Columns = Annotated[tuple[str, ...], Field(min_length=1, max_length=2)]


class DataSection(Config):
    """What the model is trained on."""

    source: str = Field(description="Name of built-in data, or a local path")
    kind: Literal["auto", Kind] = Field(
        "auto", description="How to read the path; auto: by what is there"
    )
    held_out: PathOrShare | None = Field(
        None,
        description="Path of what metrics are measured on, or the share of the "
        "training data that is set aside for it (default: files named for it)",
    )
    text_columns: Columns | None = Field(
        None, description="One or two columns that hold text (default: by name)"
    )
    label_column: str | None = Field(
        None, description="Column that holds the label (default: by name)"
    )
    skip_bad_rows: bool | None = Field(
        None, description="Leave out rows that cannot be read, and report how many"
    )
    languages: tuple[str, str] | None = Field(
        None, description='Which language into which: ["de", "en"]'
    )
    tokenizer: str | None = Field(
        None, description='Directory of a Hugging Face tokenizer (default: "bytes")'
    )
    length: int | None = Field(
        None, ge=8, description="Tokens of a sample at most (default: 128)"
    )
    image_size: int | None = Field(
        None, ge=1, description="Pixels of a side (default: 224)"
    )
    augment: bool | None = Field(
        None, description="Train on random crops and flips (default: true)"
    )

    @field_validator("source")
    @classmethod
    def _is_known(cls, source: str) -> str:
        if is_name(source) and source not in BUILT_IN:
            raise ValueError(
                f"no such file or directory, and no such data {source!r}"
                f"{nearest(source, BUILT_IN)}"
            )
        return source

    @model_validator(mode="after")
    def _keys_apply(self) -> Self:
        if self.source in BUILT_IN:
            built_in = BUILT_IN[self.source]
            if self.kind != "auto":
                raise ValueError(f"kind is for paths, and {self.source!r} is built in")
            self.refuse_other_keys(built_in.keys, f"the built-in {self.source!r}")
        elif self.kind != "auto":
            self.refuse_other_keys(KEYS_OF[self.kind], f"kind {self.kind!r}")
        for key in ("text_columns", "languages"):
            names = list(getattr(self, key) or [])
            if len({*names}) < len(names):
                raise ValueError(f"{key} names {names[0]!r} twice")
        if self.label_column is not None and self.label_column in (
            self.text_columns or ()
        ):
            raise ValueError(
                f"label_column {self.label_column!r} is one of text_columns: the model "
                "would read what it is to find out"
            )
        return self

    def refuse_other_keys(self, allowed: tuple[str, ...], what: str) -> None:
        """Refuse keys that were given and are not ``allowed``.

        Raises:
            ValueError: There is one.
        """
        for key, value in self:
            if value is not None and key not in ("source", "kind", *allowed):
                raise ValueError(f"{key} does not apply to {what}")


def is_name(source: str) -> bool:
    """Whether a source is a name of built-in data, right or wrong, not a path."""
    return source in BUILT_IN or not any(sign in source for sign in "/.")


def is_name_of_data(key: str, value: str, base: Path) -> bool:
    """Whether the value of a key of ``[data]`` is not to be read as a path."""
    if key == "source":
        known = value in BUILT_IN
        return known or (is_name(value) and not (base / value).exists())
    return key == "tokenizer" and value == BYTES
