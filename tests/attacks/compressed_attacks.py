"""Ways to change a compressed file, with its checksums made right again."""

import json
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

from step_cli.formats.compressed.writer import HEADER_KEY, KEY, header_digest
from step_cli.formats.safetensors.writer import packed_header

Header = dict[str, Any]


def rewrite(
    path: Path,
    change: Callable[[Header, dict[str, bytes]], None],
    *,
    resign: bool = True,
) -> None:
    """Change header and data of a file, as a careless or hostile writer would."""
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    data = {
        name: content[8 + length :][slice(*entry["data_offsets"])]
        for name, entry in header.items()
        if name != "__metadata__"
    }
    change(header, data)
    offset = 0
    for name, raw in data.items():
        header[name]["data_offsets"] = [offset, offset + len(raw)]
        offset += len(raw)
    if resign:
        sign(header, data)
    path.write_bytes(packed_header(header) + b"".join(data.values()))


def sign(header: Header, data: dict[str, bytes]) -> None:
    metadata = header["__metadata__"]
    if KEY in metadata and metadata[KEY].startswith("{"):
        description = json.loads(metadata[KEY])
        if "sha256" in description:
            digests = {name: sha256(raw).hexdigest() for name, raw in data.items()}
            description["sha256"] = digests
        metadata[KEY] = json.dumps(description)
    metadata[HEADER_KEY] = header_digest(header)
