"""A safetensors file with some tensors changed; all else stays where it is."""

from collections.abc import Sequence
from pathlib import Path

from step_cli.formats.files.mapped_file import MappedFile
from step_cli.formats.files.patched_copy import (
    Change,
    copy_patched,
    in_file,
    replaced,
    splice_of,
)
from step_cli.formats.plan import KEY, plan_json
from step_cli.formats.safetensors.header import Header, read_header
from step_cli.formats.safetensors.writer import packed_header
from step_cli.nm.pattern import Plan


def rewrite_safetensors(
    source: MappedFile, target: Path, changes: Sequence[Change], plan: Plan | None
) -> None:
    """Write ``source`` to ``target`` with the changes, and the plan in its header.

    Args:
        source: The file that was read.
        target: The file to write.
        changes: Those of other files are ignored.
        plan: For the header; None leaves the header without one.

    Raises:
        OutputError: What was written does not read back.
    """
    header = read_header(source)
    head = replaced(0, header.data_start, _with_plan(header, plan))
    splices = [splice_of(change) for change in in_file(changes, source)]
    copy_patched(source, target, [head, *splices])


def _with_plan(header: Header, plan: Plan | None) -> bytes:
    metadata = {k: v for k, v in header.metadata.items() if k != KEY}
    if plan is not None:
        metadata[KEY] = plan_json(plan)
    entries: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    for entry in header.entries:
        offsets = [entry.begin - header.data_start, entry.end - header.data_start]
        entries[entry.name] = {
            "dtype": entry.code,
            "shape": list(entry.shape),
            "data_offsets": offsets,
        }
    return packed_header(entries)
