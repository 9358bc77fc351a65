"""What all reports share: data that `render` shows, and `--json` dumps as it is."""

import json
import math
from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict

from step_cli.errors import StepError


class Part(BaseModel):
    """A part of a report; its validator is built when first used, to start fast."""

    model_config = ConfigDict(defer_build=True, frozen=True)


class ErrorDetail(Part):
    """One faulty input, as shown on stderr and in the JSON of a failure."""

    exit: int
    file: str | None = None
    tensor: str | None = None
    message: str

    @classmethod
    def of(cls, error: StepError, file: object = None) -> Self:
        """The detail of an error; ``file`` where it names none."""
        if error.file is not None:
            file = error.file
        return cls(
            exit=error.exit_code,
            file=None if file is None else str(file),
            tensor=error.tensor,
            message=error.message,
        )


class SkippedTensor(Part):
    """A tensor that was not checked, and why.

    ``selected`` if it should have been; that is not ``ok`` with --strict. ``note`` says
    what else is known of it.
    """

    name: str
    shape: list[int]
    dtype: str
    reason: str
    selected: bool = False
    ok: bool = True
    note: str | None = None


class Report(BaseModel):
    """The outcome of a command; a subclass names its schema, ``step-cli/NAME/1``."""

    model_config = ConfigDict(
        ser_json_inf_nan="null",
        protected_namespaces=(),
        defer_build=True,
        frozen=True,
    )
    schema_id: ClassVar[str]

    ok: bool

    def document(self) -> str:
        """The JSON document, its schema first; non-finite numbers are null."""
        body = _finite(self.body())
        # ASCII, as names from files may hold what UTF-8 cannot.
        return json.dumps({"schema": self.schema_id, **body}, indent=2, allow_nan=False)

    def body(self) -> dict[str, Any]:
        """The fields of the document."""
        return self.model_dump(mode="json", by_alias=True)

    @property
    def exit_code(self) -> int:
        """0 when every check passed, 1 when one failed."""
        return 0 if self.ok else 1

    @property
    def written(self) -> str | None:
        """The output that is there whatever happens to the report; None if none is."""
        return None

    @property
    def problems(self) -> list[ErrorDetail]:
        """Faulty inputs met on the way, each shown as one ``error:`` line."""
        return []


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
