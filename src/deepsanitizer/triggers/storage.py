"""Recovered triggers as files: safetensors with the family, strength and classes in the metadata."""

import json
from pathlib import Path

import safetensors
import safetensors.torch
from safetensors import SafetensorError

from deepsanitizer.errors import UsageError
from deepsanitizer.types import Trigger

FORMAT = "deepsanitizer-trigger/1"


def save_trigger(trigger: Trigger, path: str | Path) -> None:
    """Write a trigger; `load_trigger` and `deepsanitizer evaluate --trigger` read it."""
    facts = {"family": trigger.family, "strength": trigger.strength, "target": trigger.target,
             "source": trigger.source, "margin": trigger.margin, "goals": trigger.goals}
    tensors = {name: value.detach().cpu().contiguous() for name, value in trigger.params.items()}
    metadata = {"format": FORMAT, "trigger": json.dumps(facts)}
    safetensors.torch.save_file(tensors, str(path), metadata=metadata)


def load_trigger(path: str | Path) -> Trigger:
    """Read what `save_trigger` wrote.

    Raises UsageError where the file is missing or is not a trigger.
    """
    if not Path(path).is_file():
        raise UsageError(f"there is no trigger file {path}", "Write one with: deepsanitizer scan --export-trigger DIR")
    not_one = UsageError(f"{path} is not a trigger file", "Use a file that scan --export-trigger wrote.")
    try:
        with safetensors.safe_open(str(path), "pt") as file:
            metadata = file.metadata() or {}
            params = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise not_one from error
    if metadata.get("format") != FORMAT:
        raise not_one
    try:
        facts = json.loads(metadata["trigger"])
        goals = tuple(facts["goals"]) if facts["goals"] is not None else None
        return Trigger(facts["family"], params, facts["strength"], facts["target"], facts["source"], facts["margin"],
                       goals)
    except (KeyError, TypeError, ValueError) as error:
        raise not_one from error
