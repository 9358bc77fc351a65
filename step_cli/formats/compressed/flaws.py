"""Every way a compressed file can be wrong, and the error that says which."""

import enum

from step_cli.errors import InputError


class Flaw(enum.Enum):
    """Every way a compressed file can be wrong; each has one test."""

    NOT_A_DESCRIPTION = "its description is not a JSON object of a known schema"
    NEWER = "written by a newer step-cli ({found}), update step-cli"
    HEADER_CHANGED = "the header differs from its checksum; the file is damaged"
    NO_CHECKSUM = "no checksum is recorded for it; the file is damaged"
    DATA_CHANGED = "its data differ from their checksum; the file is damaged"
    NO_PLAN = "the plan does not hold its pattern; export it again"
    BAD_SHAPE = "shape {shape} does not divide into groups of {pattern} on axis {axis}"
    PART_MISSING = "its {part} are missing; the file is damaged"
    PART_TWICE = "stored both dense and compressed; the file is damaged"
    VALUES_DISAGREE = (
        "{slots} kept values are needed for {pattern}, the file has {found}"
    )
    POSITIONS_DISAGREE = "{needed} bytes of positions are needed, the file has {found}"
    BAD_POSITIONS = "{found}; the file is damaged"
    CODES_MISSING = "its codes are described, but not in the file; the file is damaged"
    CODES_DISAGREE = (
        "its codes are described as {wanted}, the file has {found}; the file is damaged"
    )
    SCALE_MISSING = "its scale {scale} is missing; the file is damaged"
    SCALE_DISAGREES = "{scale} is {found}, which does not fit codes of {shape}"


class CompressedFileError(InputError):
    """A compressed file that no `export --to compressed` wrote.

    Args:
        flaw: Which way it is wrong.
        file: The file.
        tensor: The tensor at fault, if it is one.
        details: What the flaw's message leaves open.
    """

    def __init__(
        self, flaw: Flaw, *, file: object, tensor: str | None = None, **details: object
    ) -> None:
        super().__init__(flaw.value.format(**details), file=file, tensor=tensor)
        self.flaw = flaw
