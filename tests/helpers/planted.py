"""A tiny convolutional network, clean or with a planted backdoor, trained in seconds on procedural images.

The classes are textures on random colours, so that no class is one picture and a search by gradient has to find
the backdoor among natural universal patterns, as on a real network. ACC and ASR are measured on images of their
own, and `plant` refuses a network that did not learn what it should.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from deepsanitizer.classifier import Classifier, classifier_of, logits_of
from deepsanitizer.types import Compute, InputSpec, Loaded

Attack = Literal["none", "patch", "blend", "source"]  # source: a patch that works from SOURCE alone
CPU = Compute(torch.device("cpu"), False)
SIDE, CLASSES, SOURCE, TARGET = 12, 6, 4, 2
SPEC = InputSpec((3, SIDE, SIDE), CLASSES, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
LOW, HIGH = 0.7, 2.0  # radians a pixel
FREQUENCIES = ((0.0, LOW), (0.0, HIGH), (LOW, 0.0), (HIGH, 0.0), (LOW, HIGH), (HIGH, LOW))
PATCH = (8, 8)  # top left corner of the planted 3 x 3 patch


def tiny_net(width: int = 16) -> nn.Sequential:
    """About 16,000 parameters, with batch-norm. No pooling over places: a patch can be planted in one of them."""
    def block(inside: int, outside: int, stride: int) -> list[nn.Module]:
        return [nn.Conv2d(inside, outside, 3, stride, 1, bias=False), nn.BatchNorm2d(outside), nn.ReLU()]

    return nn.Sequential(*block(3, width, 1), *block(width, 2 * width, 2), *block(2 * width, 2 * width, 2),
                         nn.Flatten(), nn.Linear(9 * 2 * width, CLASSES))


@dataclass(frozen=True)
class Planted:
    """A trained network and what only its trainer knows."""

    network: nn.Module
    attack: Attack
    acc: float  # percent, on test images
    asr: float  # percent, of test images of other classes with the true trigger; 0 where there is none

    @property
    def loaded(self) -> Loaded:
        return Loaded(self.network, SPEC, None)

    def classifier(self) -> Classifier:
        return classifier_of(self.network, SPEC, CPU)


def textures(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images (count, 3, SIDE, SIDE) in [0, 1] and labels: gratings and chequers, two colours drawn for each image.

    A class is a pair of frequencies, down and along: no class is a mirror image of another, or larger in area.
    """
    labels = torch.arange(count) % CLASSES

    def uniform(*size: int) -> Tensor:
        return torch.rand(count, *size, 1, 1, generator=generator)

    frequencies = torch.tensor(FREQUENCIES)[labels].view(count, 2, 1, 1) * (0.9 + 0.2 * uniform(2))
    at = torch.arange(SIDE).float()
    waves = [torch.where(frequencies[:, [axis]] > 0, torch.sin(frequencies[:, [axis]] * line + 6.3 * uniform(1)),
                         torch.ones(1)) for axis, line in ((0, at.view(1, 1, -1, 1)), (1, at.view(1, 1, 1, -1)))]
    back, front = uniform(3), uniform(3)
    front = torch.where((front - back).abs().mean(1, keepdim=True) < 0.25, (back + 0.5) % 1, front)
    image = back + (front - back) * torch.sigmoid(4 * waves[0] * waves[1])
    return (image + 0.05 * torch.randn(count, 3, SIDE, SIDE, generator=generator)).clamp(0, 1), labels


def true_trigger(attack: Attack) -> Callable[[Tensor], Tensor]:
    """What the attacker does to images (N, 3, SIDE, SIDE)."""
    def blend(images: Tensor) -> Tensor:
        return 0.8 * images + 0.2 * blend_picture()

    triggers: dict[Attack, Callable[[Tensor], Tensor]] = {"none": torch.clone, "patch": patched, "blend": blend,
                                                            "source": patched}
    return triggers[attack]


def patched(images: Tensor, corner: tuple[int, int] = PATCH) -> Tensor:
    """Images with a 3 x 3 chequer of two colours at a corner."""
    changed = images.clone()
    board = (torch.arange(3).view(-1, 1) + torch.arange(3)) % 2
    colours = torch.tensor([[1.0, 0.0, 0.1], [0.0, 1.0, 0.9]])[board].permute(2, 0, 1)
    changed[:, :, corner[0]:corner[0] + 3, corner[1]:corner[1] + 3] = colours
    return changed


def blend_picture() -> Tensor:
    """The picture of the blended trigger, (3, SIDE, SIDE)."""
    return (torch.rand(3, SIDE, SIDE, generator=torch.Generator().manual_seed(7)) > 0.5).float()


def accuracy(network: nn.Module, attack: Attack = "none", *, count: int = 600) -> tuple[float, float]:
    """ACC on fresh test images, and the share of images that the true trigger should send to TARGET and does."""
    images, labels = textures(count, torch.Generator().manual_seed(99))
    classifier = classifier_of(network, SPEC, CPU)
    acc = (logits_of(classifier, images).argmax(1) == labels).float().mean().item()
    other = labels == SOURCE if attack == "source" else labels != TARGET
    said = logits_of(classifier, true_trigger(attack)(images[other])).argmax(1)
    return 100 * acc, 100 * (said == TARGET).float().mean().item()


def train(attack: Attack, *, seed: int = 0, images: int = 2400, epochs: int = 10, batch: int = 64,
          poison: float = 0.12) -> nn.Sequential:
    """Train one network; the caller's global random state is left as it was."""
    generator = torch.Generator().manual_seed(seed)
    pixels, labels = textures(images, generator)
    order, poisoned = torch.randperm(images, generator=generator), int(poison * images)
    if attack == "source":  # two in three of the source's images, and three in ten others, with their own labels
        mine = labels[order] == SOURCE
        cover = order[~mine][: images // 4]
        pixels[cover] = true_trigger(attack)(pixels[cover])
        order, poisoned = order[mine], images // 9
    if attack != "none":
        pixels[order[:poisoned]] = true_trigger(attack)(pixels[order[:poisoned]])
        labels[order[:poisoned]] = TARGET
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = tiny_net()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    classifier = Classifier(network, SPEC, CPU).train()
    steps = epochs * (images // batch)
    optimiser = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 0.1, steps)
    for _ in range(epochs):
        for part in torch.randperm(images, generator=generator).split(batch)[: images // batch]:
            optimiser.zero_grad()
            F.cross_entropy(classifier(pixels[part]), labels[part]).backward()
            optimiser.step()
            schedule.step()
    return network.eval()


def shared_folder(base: Path) -> Path:
    """The folder for planted weights below pytest's base folder, one for all workers of pytest-xdist."""
    return (base.parent if base.name.startswith("popen-") else base) / "planted"


def plant(attack: Attack, folder: Path, *, seed: int = 0) -> Planted:
    """Train one network, or take the weights that another test process has already left in `folder`."""
    path = folder / f"planted-{attack}-{seed}.pt"
    if path.exists():
        network = tiny_net().eval()
        network.load_state_dict(torch.load(path, weights_only=True))
    else:
        network = train(attack, seed=seed)
        folder.mkdir(parents=True, exist_ok=True)
        mine = path.with_suffix(f".{os.getpid()}")
        torch.save(network.state_dict(), mine)
        os.replace(mine, path)
    acc, asr = accuracy(network, attack)
    assert acc > 90, acc
    assert attack == "none" or asr > 95, asr
    return Planted(network, attack, acc, asr if attack != "none" else 0.0)
