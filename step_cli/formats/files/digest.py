"""Digests recorded beside a plan: safetensors and torch files cannot tell damage."""

import hashlib
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

from step_cli.errors import InputError
from step_cli.formats.files.mapped_file import map_file
from step_cli.nm.threads import in_order


def digests(paths: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """The field ``files`` of a plan: size in bytes and sha256 of each file, by name."""
    found = sorted(paths)
    sums = in_order((partial(sha256, p) for p in found), threads=len(found) > 1)
    return {
        path.name: {"size": path.stat().st_size, "sha256": digest}
        for path, digest in zip(found, sums, strict=True)
    }


def check_digest(path: Path, document: dict[str, Any], plan: Path) -> bool:
    """Compare a file with what was recorded of it; False if nothing was.

    Raises:
        InputError: It has another size or digest.
    """
    recorded = document.get("files")
    entry = recorded.get(path.name) if isinstance(recorded, dict) else None
    wanted = entry.get("sha256") if isinstance(entry, dict) else None
    if wanted is None:
        return False
    if wanted != sha256(path):
        raise InputError(
            f"its sha256 differs from the one in {plan.name}: damaged, or from "
            "another run; remove that entry if the change was meant",
            file=path,
        )
    return True


def sha256(path: Path) -> str:
    """The digest of a file, in hexadecimal."""
    return hashlib.sha256(map_file(path).data.data).hexdigest()
