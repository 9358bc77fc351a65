"""SARIF documents against the whole schema of OASIS.

`schemas/sarif-schema-2.1.0.json` is a copy of Schemata/sarif-schema-2.1.0.json in
github.com/oasis-tcs/sarif-spec, unchanged but for line ends; copyright OASIS Open.
"""

import json
import re
from pathlib import Path
from typing import Any

import jsonschema

SCHEMA = json.loads(
    (Path(__file__).parent / "schemas" / "sarif-schema-2.1.0.json").read_text("utf-8")
)
VALIDATOR = jsonschema.Draft7Validator(SCHEMA)
# RFC 3986, which jsonschema would need another package to check.
URI_REFERENCE = re.compile(r"(?:[A-Za-z0-9._~/:@!$&'()*+,;=?#-]|%[0-9A-Fa-f]{2})*")


def check_sarif(document: dict[str, Any]) -> None:
    """Raise ValidationError unless it is SARIF 2.1.0, its locations URI references."""
    VALIDATOR.validate(document)
    for run in document["runs"]:
        for result in run["results"]:
            for location in result["locations"]:
                uri = location["physicalLocation"]["artifactLocation"]["uri"]
                if not URI_REFERENCE.fullmatch(uri):
                    raise jsonschema.ValidationError(f"no URI reference: {uri!r}")
