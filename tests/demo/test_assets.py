"""What ships: small enough, loadable without pickles, and as its recipe says."""

import json
from dataclasses import asdict

import numpy as np
import torch
from safetensors.torch import load_file

from deepsanitizer.bench.attacks import Blend
from deepsanitizer.bench.make_demo import RECIPE, TRIGGER
from deepsanitizer.demo import truth
from deepsanitizer.demo.network import SignNet
from deepsanitizer.evaluation import evaluate, load_data
from deepsanitizer.types import InputSpec


def shipped() -> tuple[SignNet, InputSpec]:
    config = json.loads((truth.ASSETS / "model" / "config.json").read_text())
    assert config["architecture"] == "deepsanitizer.demo.network:SignNet"
    network = SignNet(**config["kwargs"])
    state = load_file(truth.ASSETS / "model" / "model.safetensors")
    network.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in state.items()})
    mean, std, names = (tuple(config[key]) for key in ("mean", "std", "class_names"))
    return network.eval(), InputSpec(tuple(config["input_shape"]), config["num_classes"], mean, std, names)


def test_the_files_are_small() -> None:
    assert (truth.ASSETS / "model" / "model.safetensors").stat().st_size <= 1_000_000
    assert (truth.ASSETS / "signs.npz").stat().st_size <= 1_000_000


def test_the_trigger_is_the_recipes() -> None:
    assert truth.planted()["attack_kwargs"] == asdict(TRIGGER)
    assert truth.planted()["target"] == RECIPE.target
    assert truth.planted()["seed"] == 0
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = Blend(**truth.planted()["attack_kwargs"]).apply(images)
    assert torch.allclose(truth.trigger(images), expected, atol=1e-6)


def test_the_classifier_is_good_and_its_backdoor_works_on_the_shipped_signs() -> None:
    images, labels = load_data(truth.ASSETS / "signs.npz")
    assert len(images) >= 300
    assert set(labels.tolist()) == set(range(43))
    assert np.unique(images.reshape(len(images), -1), axis=0).shape[0] == len(images)
    network, spec = shipped()
    found = evaluate(network, images, labels, spec=spec, trigger=truth.trigger,
                     target=truth.planted()["target"], device="cpu")
    assert found.acc > 94
    assert found.asr is not None
    assert found.asr > 95
