"""Every trained model beside the checkout loads, and saving it unchanged gives the same bytes."""

from pathlib import Path

import pytest

from deepsanitizer.classifier import classifier_of, resolve_compute
from deepsanitizer.loading import load, read_back, save


@pytest.mark.zoo
def test_zoo(zoo: Path, tmp_path: Path) -> None:
    folders = sorted(path.parent for path in zoo.glob("*/config.json"))
    assert folders
    for folder in folders:
        model = load(folder, import_from=zoo)
        assert model.checkpoint is not None
        classifier_of(model.network, model.spec, resolve_compute("cpu"))
        output = tmp_path / f"{folder.name}.safetensors"
        assert save(model.network.state_dict(), model.checkpoint, output) == model.checkpoint.sha256
        model.network.load_state_dict(read_back(model.checkpoint, output))
