"""Print the schema of `report.json`: `python -m deepsanitizer.report > docs/report-schema.json`."""

import json

from deepsanitizer.report.json import json_schema

print(json.dumps(json_schema(), indent=2))
