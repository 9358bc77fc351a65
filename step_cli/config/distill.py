"""``[distill]``: a teacher whose outputs a run learns from beside the labels."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from step_cli.config.samples import sample_names
from step_cli.config.types import Section, read_step, to_step
from step_cli.errors import nearest


def _read_start(value: object) -> object:
    if value == "switch":
        return value
    try:
        return read_step(value)
    except ValueError as error:
        raise ValueError(f"{error}; or 'switch'") from None


Start = Annotated[Literal["switch"] | int | float, BeforeValidator(_read_start)]


def refuse_unknown_sample(source: str) -> str:
    """Refuse ``sample:NAME`` of which there is none."""
    name = source.removeprefix("sample:")
    if name != source and name not in sample_names():
        raise ValueError(f"no sample model {name!r}{nearest(name, sample_names())}")
    return source


ModelSpec = Annotated[str, AfterValidator(refuse_unknown_sample)]


class DistillSection(Section):
    """Which teacher, and how much its outputs count."""

    teacher: str = Field("", description="CHECKPOINT, dense or sparse; empty: none")
    teacher_model: ModelSpec = Field(
        "", description="Its model as in model.source; empty: that of [model]"
    )
    weight: float = Field(
        0.5, ge=0, le=1, description="loss = (1 - weight) task + weight distillation"
    )
    temperature: float = Field(
        1.0, ge=0.01, le=100, description="Divides the scores of both models"
    )
    start: Start = Field(
        0,
        alias="from",
        description="Steps without the teacher, or 'switch': until masks are learned",
    )

    @model_validator(mode="after")
    def _has_a_teacher(self) -> Self:
        if self.teacher_model and not self.teacher:
            raise ValueError("teacher_model is given without teacher, its CHECKPOINT")
        return self

    @property
    def counts(self) -> bool:
        """Whether a teacher is there and changes the loss at all."""
        return bool(self.teacher) and self.weight > 0

    def steps_without(self, steps: int) -> int | None:
        """How many of ``steps`` come before the teacher; None: those of the switch."""
        return None if isinstance(self.start, str) else to_step(self.start, steps)
