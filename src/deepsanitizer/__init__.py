"""DeepSanitizer: find and remove backdoors in trained classifiers, without any data.

    import deepsanitizer

    model = deepsanitizer.load("downloaded-model/", import_from="src/")
    report = deepsanitizer.scan(model)
    clean, report = deepsanitizer.sanitize(model)

Importing this package does not import torch: the public names are loaded when first used.
"""

import importlib
from typing import TYPE_CHECKING, Any

from deepsanitizer._version import __version__

if TYPE_CHECKING:
    from deepsanitizer.evaluation import Evaluation, evaluate
    from deepsanitizer.loading import load
    from deepsanitizer.pipeline import sanitize, scan
    from deepsanitizer.types import InputSpec, Loaded, SanitizeReport, ScanReport

_HOME = {
    "load": "deepsanitizer.loading",
    "scan": "deepsanitizer.pipeline",
    "sanitize": "deepsanitizer.pipeline",
    "evaluate": "deepsanitizer.evaluation",
    "Evaluation": "deepsanitizer.evaluation",
    "InputSpec": "deepsanitizer.types",
    "Loaded": "deepsanitizer.types",
    "ScanReport": "deepsanitizer.types",
    "SanitizeReport": "deepsanitizer.types",
}

__all__ = ["Evaluation", "InputSpec", "Loaded", "SanitizeReport", "ScanReport", "__version__", "evaluate",
           "load", "sanitize", "scan"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'deepsanitizer' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
