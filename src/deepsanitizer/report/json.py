"""`report.json`: a report encoded, read back strictly, and its published schema.

`schema` names the version. A sanitize report is told from a scan report by the presence of `outcome`.
JSON has no NaN or infinity: a field that may be null holds null instead (unknown), any other is refused here,
so that nothing unreadable is ever written.
"""

import json
import math
from typing import Any

import msgspec

from deepsanitizer.errors import CannotJudgeError, WorkError
from deepsanitizer.types import SanitizeReport, ScanReport

SCHEMA = "deepsanitizer-report/1"
_REMEDY = "Give a report.json that this version of DeepSanitizer wrote, unchanged."


def to_json(report: ScanReport) -> str:
    """The report as indented JSON that `from_json` reads back to an equal report.

    Raises WorkError, naming the field, where a number that may not be null is NaN or infinite.
    """
    builtins = _clean(msgspec.to_builtins(report))
    try:
        msgspec.convert(builtins, type(report))
    except msgspec.ValidationError as error:
        raise WorkError(f"the report holds a value that JSON cannot: {error}",
                        "This is a fault of DeepSanitizer: please report it.") from error
    return json.dumps(builtins, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def from_json(text: str | bytes) -> ScanReport:
    """The ScanReport or SanitizeReport that was encoded.

    Strict: raises CannotJudgeError for what is not JSON, another schema version, a missing, unknown or
    ill-typed field.
    """
    try:
        raw = msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise CannotJudgeError(f"the report is not JSON ({error})", _REMEDY) from error
    found = raw.get("schema") if isinstance(raw, dict) else None
    if not isinstance(raw, dict) or found != SCHEMA:
        raise CannotJudgeError(f"the file's schema is {str(found)[:80]!r}, not {SCHEMA!r}", _REMEDY)
    kind = SanitizeReport if "outcome" in raw else ScanReport
    try:
        report: ScanReport = msgspec.convert(raw, kind)
    except msgspec.ValidationError as error:
        raise CannotJudgeError(f"the report does not fit its schema: {error}", _REMEDY) from error
    unknown = _unknown(raw, msgspec.to_builtins(report))
    if unknown:
        raise CannotJudgeError(f"the report has an unknown field {unknown!r}", _REMEDY)
    return report


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of `report.json`: one of a scan and a sanitize report."""
    kinds, definitions = msgspec.json.schema_components([ScanReport, SanitizeReport])
    for definition in definitions.values():
        definition["additionalProperties"] = False
    for name in ("ScanReport", "SanitizeReport"):
        definitions[name]["properties"]["schema"] = {"const": SCHEMA}
        definitions[name]["required"] = ["schema", *definitions[name]["required"]]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": SCHEMA,
            "description": "A DeepSanitizer report: of `sanitize` if it has `outcome`, else of `scan`.",
            "oneOf": list(kinds), "$defs": definitions}


def _clean(value: Any) -> Any:
    """NaN and infinity to null, and file names that are not Unicode to text that can be written."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode("utf-8")
    if isinstance(value, dict):
        return {_clean(str(key)): _clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_clean(item) for item in value]
    return value


def _unknown(raw: Any, known: Any, where: str = "") -> str:
    """The first field of `raw` that decoding dropped, or ""."""
    if isinstance(raw, dict):
        for key, item in raw.items():
            name = f"{where}.{key}".lstrip(".")[-80:]
            found = name if key not in known else _unknown(item, known[key], name)
            if found:
                return found
    elif isinstance(raw, list):
        for item, same in zip(raw, known, strict=True):
            if found := _unknown(item, same, where + "[]"):
                return found
    return ""
