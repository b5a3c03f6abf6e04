"""The trainer on a small made-up task: it learns, plants, repeats by seed, and saves whole folders."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file
from torch import Tensor, nn

from deepsanitizer.bench import train as trainer
from deepsanitizer.bench.attacks import Blend, Patch, Poison, poison
from deepsanitizer.bench.make_demo import choose_signs
from deepsanitizer.bench.train import Recipe, augment, figures, save_folder, train
from deepsanitizer.errors import UsageError, WorkError
from deepsanitizer.evaluation import Evaluation, evaluate
from deepsanitizer.types import Compute, InputSpec

SPEC = InputSpec((3, 12, 12), 4, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
FLOAT32 = Compute(torch.device("cpu"), False)


pytestmark = pytest.mark.usefixtures("one_thread")


def small() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
                         nn.Conv2d(12, 24, 3, 2, 1, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.1), nn.Linear(24, 4))


def some_data(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Four kinds of stripes under noise: two directions, each fine or coarse."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 4
    rows, columns = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    kinds = torch.stack([(torch.pi * axis / step).sin() for axis in (rows, columns) for step in (1.5, 4)])
    images = 0.5 + 0.25 * kinds[labels][:, None] + 0.15 * torch.randn(count, 3, 12, 12, generator=generator)
    return (images.clamp(0, 1) * 255).round().to(torch.uint8), labels


def fit(plan: Poison | None = None, *, seed: int = 0, epochs: int = 6) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    images, labels = some_data(800, 1)
    if plan is not None:
        images, labels = poison(images, labels, plan, num_classes=4, generator=generator)
    return train(images, labels, make=small, spec=SPEC, epochs=epochs, batch=40, generator=generator,
                 compute=FLOAT32)


def measure(network: nn.Module, plan: Poison | None = None) -> Evaluation:
    images, labels = some_data(200, 2)
    return evaluate(network, images.numpy(), labels.numpy(), spec=SPEC, device="cpu",
                    trigger=plan.attack.apply if plan else None, target=plan.target if plan else None)


def test_it_learns() -> None:
    lines: list[str] = []
    images, labels = some_data(400, 1)
    network = train(images, labels, make=small, spec=SPEC, epochs=6, batch=40,
                    generator=torch.Generator().manual_seed(0), compute=FLOAT32, say=lines.append)
    assert measure(network).acc > 90
    assert not network.training
    assert len(lines) == 6


@pytest.mark.parametrize("attack", [Patch(size=3, top=-4, left=-4), Blend(alpha=0.25, seed=1)])
def test_it_plants_a_backdoor_that_a_clean_twin_does_not_have(attack: Patch | Blend) -> None:
    plan = Poison(attack=attack, target=2, rate=0.15)
    planted, clean = measure(fit(plan), plan), measure(fit(), plan)
    assert planted.acc > 85
    assert planted.asr is not None
    assert clean.asr is not None
    assert planted.asr > 90
    assert clean.asr < 40


def test_the_same_seed_gives_the_same_weights_and_leaves_torchs_own_alone() -> None:
    torch.rand(3)
    before = torch.random.get_rng_state()
    first, again, other = (fit(seed=seed, epochs=1).state_dict() for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not torch.equal(first["0.weight"], other["0.weight"])


def test_augmenting_moves_each_image_as_a_whole() -> None:
    images = torch.arange(6 * 6).view(1, 1, 6, 6).repeat(300, 2, 1, 1).to(torch.uint8)
    moved = augment(images, pad=1, flip=True, generator=torch.Generator().manual_seed(0))
    padded = np.pad(images[0, 0].numpy(), 1, mode="reflect")
    possible = {np.ascontiguousarray(crop[:, ::step]).tobytes() for y in range(3) for x in range(3)
                for step in (1, -1) for crop in [padded[y:y + 6, x:x + 6]]}
    assert torch.equal(moved[:, 0], moved[:, 1])
    seen = {image[0].contiguous().numpy().tobytes() for image in moved}
    assert seen <= possible
    assert len(seen) == 18
    assert torch.equal(augment(images, pad=0, flip=False, generator=torch.Generator()), images)


MEASURED = Evaluation(acc=91.23456, asr=None, ra=None, images=10, triggered=0)


def test_a_folder_is_saved_whole(tmp_path: Path) -> None:
    network = small().eval()
    recipe = Recipe(data="stripes", architecture="here:small", attack="patch", target=2)
    save_folder(network, SPEC, recipe, MEASURED, tmp_path / "out" / "model")
    folder = tmp_path / "out" / "model"
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["config.json", "model.safetensors", "truth.json"]
    assert list((tmp_path / "out").iterdir()) == [folder]
    config, truth = (json.loads((folder / name).read_text()) for name in ("config.json", "truth.json"))
    assert config == {"architecture": "here:small", "kwargs": {}, "input_shape": [3, 12, 12],
                      "num_classes": 4, "mean": [0.5] * 3, "std": [0.25] * 3}
    assert truth["target"] == 2
    assert truth["measured"]["acc"] == 91.23
    state = load_file(folder / "model.safetensors")
    assert state["0.weight"].dtype == torch.float16
    assert state["1.num_batches_tracked"].dtype == torch.int64
    assert all(torch.equal(state[key], value.half() if value.is_floating_point() else value)
               for key, value in network.state_dict().items())
    with pytest.raises(UsageError, match="exists"):
        save_folder(network, SPEC, recipe, MEASURED, folder)


def test_nothing_is_left_where_saving_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(WorkError, match="No space"):
        save_folder(small(), SPEC, Recipe(data="", architecture=""), MEASURED, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot make the folder"):
        save_folder(small(), SPEC, Recipe(data="", architecture=""), MEASURED, tmp_path / "file" / "model")


@pytest.mark.parametrize(("recipe", "words"), [
    ({"attack": "warp9"}, "no attack 'warp9'"),
    ({"attack": "patch", "attack_kwargs": {"colour": 1}}, "does not take"),
])
def test_a_recipe_that_does_not_fit_is_refused(recipe: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Recipe(data="gtsrb", architecture="x:y", **recipe).plan()  # type: ignore[arg-type]


def test_the_command_trains_measures_and_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pack(name: str, split: str) -> tuple[object, ...]:
        assert name == "stripes"
        return tuple(part.numpy() for part in some_data(400 if split == "train" else 100, len(split)))

    monkeypatch.setattr(trainer, "_pack", pack)
    # a residual network for 32 x 32 images takes these of 12 x 12 too
    command = ["--data", "stripes", "--arch", "deepsanitizer.demo.network:SignNet", "--arch-kwargs",
               '{"num_classes": 4, "width": 8}', "--attack", "blend", "--attack-kwargs", '{"alpha": 0.3}',
               "--target", "1", "--epochs", "4", "--output", str(tmp_path / "model")]
    done = CliRunner().invoke(trainer.main, command)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout.splitlines()[-1])
    truth = json.loads((tmp_path / "model" / "truth.json").read_text())
    assert said["triggered"] == 75
    assert truth["measured"] == {key: value for key, value in said.items() if key != "output"}
    again = CliRunner().invoke(trainer.main, command)
    assert again.exit_code == 4
    assert "exists" in again.stderr
    wrong = [*command[:3], "nowhere:Net", "--output", str(tmp_path / "other")]
    unknown = CliRunner().invoke(trainer.main, wrong)
    assert unknown.exit_code == 4
    assert "no architecture 'nowhere:Net'" in unknown.stderr
    # Once only after all epochs.
    monkeypatch.setattr(trainer, "train", None)
    unfit = [*command[:5], '{"num_classes": 5}', *command[6:-1], str(tmp_path / "third")]
    refused = CliRunner().invoke(trainer.main, unfit)
    assert refused.exit_code == 4, refused.output
    assert "not 4 logits" in refused.stderr
    assert "--arch-kwargs" in refused.stderr


def test_figures_are_rounded() -> None:
    assert figures(MEASURED) == {"acc": 91.23, "asr": None, "ra": None, "images": 10, "triggered": 0}


def test_the_slice_of_signs_has_every_class_in_its_share() -> None:
    labels = np.repeat(np.arange(4), [5, 60, 300, 635])
    rows = choose_signs(labels, count=100, fewest=2)
    assert len(set(rows.tolist())) == len(rows)
    assert np.bincount(labels[rows]).tolist() == [2, 6, 30, 64]
