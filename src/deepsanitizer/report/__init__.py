"""Reports for programs (JSON), for people at a terminal (text), and for managers and auditors (HTML)."""

from deepsanitizer.report.html import to_html
from deepsanitizer.report.json import from_json, json_schema, to_json
from deepsanitizer.report.text import to_text
from deepsanitizer.report.write import write

__all__ = ["from_json", "json_schema", "to_html", "to_json", "to_text", "write"]
