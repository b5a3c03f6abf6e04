"""Unlearn universal shifts of features: for what no family of image transformations covers.

What: shifts at the inspection layer that send features of other classes to the goal are searched on the head as it is,
join those found before, and the head takes SGD steps on  keep * KL(original || new) on plain features
+ KL(original on f || new on f + shift) - log(1 - p(goal)) on f + shift; then anew. The extractor is left alone.
Why it works, where it does: a head that no small shift sends to the goal is not sent there by the trigger's either.
Limits: the goal must be known. What is searched moves features as no image need move them, and the direction of the
trigger may not be among it; the head alone is repaired, at a cost (docs/research/log.md, 52: a patch removed with seven
points of accuracy, a blend left as it was with eight). The loss and the adversarial rounds are ours.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from deepsanitizer.classifier import Classifier
from deepsanitizer.repair.tune import kl
from deepsanitizer.search import shifted, shifts
from deepsanitizer.split import Split, split
from deepsanitizer.types import Dummies, Run


def repair(original: Split, dummies: Dummies, goal: int, run: Run, *, rounds: int = 3, restarts: int = 4,
           radius: float = 0.5, steps: int = 40, batch: int = 64, lr: float = 4e-3, momentum: float = 0.9,
           keep: float = 4.0, weakest: float = 0.3, clip: float = 1.0,
           purpose: str = "shift") -> tuple[Classifier, list[float]]:
    """A new classifier with a tuned head, and the strongest margin that a search reached before each round.

    `dummies` without the goal's own; a shift is applied at a share of its strength in [weakest, 1].
    """
    generator = run.generator(purpose)
    edited = original.classifier.clone()
    parts = split(edited, original.layer)
    with torch.no_grad():
        features = torch.cat([original.extractor(some) for some in dummies.images.split(64)])
        wanted = torch.cat([original.head(some) for some in features.split(64)]).softmax(1)
    run.meter.add(len(features), backward=False)
    of_head = set(parts.head_parameters)
    parameters = [p for name, p in edited.network.named_parameters() if name in of_head]
    known: list[Tensor] = []
    reached = []
    for number in range(rounds):
        found = shifts(parts, features, dummies.labels, [goal] * restarts, run, generator=generator, radius=radius,
                       spread=0.5)
        known += found.shift.split(1)
        reached.append(found.margin.max().item())
        _tune(parts, parameters, features, wanted, known, goal, run, generator, steps=steps, batch=batch, lr=lr,
              momentum=momentum, keep=keep, weakest=weakest, clip=clip, done=(number, rounds))
    return edited, reached


def _tune(parts: Split, parameters: Sequence[torch.nn.Parameter], features: Tensor, wanted: Tensor,
          known: Sequence[Tensor], goal: int, run: Run, generator: torch.Generator, *, steps: int, batch: int,
          lr: float, momentum: float, keep: float, weakest: float, clip: float, done: tuple[int, int]) -> None:
    """SGD on the head, in place; each step takes one of the shifts."""
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimiser = torch.optim.SGD(parameters, lr=lr, momentum=momentum)
    for step in range(steps):
        run.step("tuning the head on shifted features", done[0] * steps + step, done[1] * steps)
        chosen = torch.randint(len(features), (batch,), generator=generator).to(features.device)
        share = weakest + (1 - weakest) * torch.rand(1, generator=generator).item()
        one = known[int(torch.randint(len(known), (1,), generator=generator))]
        moved = shifted(parts, features[chosen], share * one)[0]
        logits = parts.head(torch.cat([features[chosen], moved]))
        away = torch.log(1 - logits[batch:].softmax(1)[:, goal].clamp(max=1 - 1e-4)).mean()
        loss = (keep * kl(wanted[chosen], logits[:batch]) + kl(wanted[chosen], logits[batch:]) - away) / (keep + 2)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimiser.step()
        run.meter.add(2 * batch, backward=True, share=1 - parts.share_before)
    for parameter in parameters:
        parameter.requires_grad_(False)
