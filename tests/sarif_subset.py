"""The part of the SARIF 2.1.0 schema that our documents use, closed to other fields.

Written from the OASIS specification (sections in comments); stricter than the official
schema, as it allows no property that we do not write.
"""

from typing import Any


def closed(required: list[str], **properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "required": required,
        "properties": properties,
        "additionalProperties": False,
    }


def array(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


TEXT = {"type": "string"}
MESSAGE = closed(["text"], text={"type": "string", "minLength": 1})  # 3.11
LEVEL = {"enum": ["none", "note", "warning", "error"]}  # 3.27.10
NATURAL = {"type": "integer", "minimum": 0}

LOCATION = closed(  # 3.28
    ["physicalLocation"],
    physicalLocation=closed(  # 3.29
        ["artifactLocation"],
        artifactLocation=closed(  # 3.4: a valid URI reference (RFC 3986)
            ["uri"], uri={"type": "string", "pattern": "^[A-Za-z0-9._~/%:-]*$"}
        ),
        region=closed(["startLine"], startLine={"type": "integer", "minimum": 1}),
    ),
    logicalLocations=array(closed([], fullyQualifiedName=TEXT)),  # 3.33
)

RESULT = closed(  # 3.27
    ["message", "ruleId"],
    ruleId=TEXT,
    ruleIndex=NATURAL,
    level=LEVEL,
    message=MESSAGE,
    locations=array(LOCATION),
    partialFingerprints={"type": "object", "additionalProperties": TEXT},
)

DRIVER = closed(  # 3.19
    ["name"],
    name=TEXT,
    version=TEXT,
    rules=array(closed(["id"], id=TEXT, shortDescription=MESSAGE)),
)

INVOCATION = closed(  # 3.20
    ["executionSuccessful"],
    executionSuccessful={"type": "boolean"},
    exitCode={"type": "integer"},
    toolExecutionNotifications=array(closed(["message"], level=LEVEL, message=MESSAGE)),
)

SARIF_SUBSET = closed(  # 3.13
    ["version", "runs"],
    **{"$schema": {"type": "string", "format": "uri"}},
    version={"const": "2.1.0"},
    runs=array(
        closed(  # 3.14
            ["tool"],
            tool=closed(["driver"], driver=DRIVER),
            invocations=array(INVOCATION),
            results=array(RESULT),
            columnKind={"enum": ["utf16CodeUnits", "unicodeCodePoints"]},
        )
    ),
)
