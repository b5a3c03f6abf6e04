"""Put a trigger and wrong labels into training data."""

from dataclasses import dataclass

import torch
from torch import Tensor

from deepsanitizer.bench.attacks.attack import Attack, stamp
from deepsanitizer.errors import UsageError
from deepsanitizer.types import Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Poison:
    """What the attacker does to the training data; rates are shares of all training images.

    all2one: images of other classes than `target` get the trigger and the label `target`. specific: images of
    class `source` only; `cover_rate` images of other classes get the trigger and keep their label, so that
    the trigger alone is not enough. all2all: images of every class get the trigger and the label of the next
    class (the last one's is 0).
    """

    attack: Attack
    mode: Kind = "all2one"
    target: int | None = None
    source: int | None = None
    rate: float = 0.08
    cover_rate: float = 0.0

    def check(self, num_classes: int) -> None:
        """UsageError where the parts do not go together."""
        if self.mode not in ("all2one", "specific", "all2all"):
            raise UsageError(f"there is no mode {self.mode!r}", "Choose all2one, specific or all2all.")
        named = [("target", self.target)] * (self.mode != "all2all") + [("source", self.source)] * (
            self.mode == "specific")
        for name, value in named:
            if value is None or not 0 <= value < num_classes:
                raise UsageError(f"mode {self.mode} needs a {name} from 0 to {num_classes - 1}, not {value}",
                                 f"Give a {name}.")
        if self.mode == "all2all" and self.target is not None:
            raise UsageError("mode all2all has no single target", "Leave the target out.")
        if self.mode == "specific" and self.source == self.target:
            raise UsageError(f"source and target are both {self.target}", "Give two different classes.")
        if not 0 < self.rate <= 1 or not 0 <= self.cover_rate <= 1:
            raise UsageError(f"rates {self.rate} and {self.cover_rate} are not shares",
                             "Give a rate above 0 and at most 1.")
        if self.cover_rate and self.mode != "specific":
            raise UsageError("cover samples belong to the mode specific", "Leave the cover rate at 0.")


def poison(images: Tensor, labels: Tensor, plan: Poison, *, num_classes: int,
           generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """A poisoned copy of images uint8 (N, C, H, W) and labels (N,); the order stays.

    Raises UsageError where there are fewer images to poison than the rate asks for.
    """
    plan.check(num_classes)
    images, true, labels = images.clone(), labels, labels.clone()
    if plan.mode == "specific":
        assert plan.source is not None
        _stamp_some(images, plan.attack, true.ne(plan.source), plan.cover_rate, generator)
        chosen = _stamp_some(images, plan.attack, true.eq(plan.source), plan.rate, generator)
    else:
        open_to = torch.ones_like(true, dtype=torch.bool) if plan.target is None else true.ne(plan.target)
        chosen = _stamp_some(images, plan.attack, open_to, plan.rate, generator)
    goal = (true + 1) % num_classes if plan.target is None else torch.full_like(true, plan.target)
    labels[chosen] = goal[chosen]
    return images, labels


def _stamp_some(images: Tensor, attack: Attack, open_to: Tensor, rate: float,
                generator: torch.Generator) -> Tensor:
    """Put the trigger on a random share of all images, taken from those allowed; returns which."""
    count, candidates = round(rate * len(images)), open_to.nonzero().flatten()
    if count > len(candidates):
        raise UsageError(f"{count} images were to get the trigger, but only {len(candidates)} are open to it",
                         f"Give a rate of at most {len(candidates) / len(images):.3f}.")
    chosen = candidates[torch.randperm(len(candidates), generator=generator)[:count]]
    images[chosen] = stamp(attack, images[chosen])
    return chosen
