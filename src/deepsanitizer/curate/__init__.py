"""Dummies in place of data: features at the inspection layer (the paper), and images."""

from deepsanitizer.curate.inversion import curate_ordinary, invert
from deepsanitizer.curate.natural import blended, drawn, natural
from deepsanitizer.curate.posterior import curate_features
from deepsanitizer.curate.procedural import procedural

__all__ = ["blended", "curate_features", "curate_ordinary", "drawn", "invert", "natural", "procedural"]
