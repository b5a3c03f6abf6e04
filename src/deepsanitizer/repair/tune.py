"""A short tune: few gradient steps that keep plain dummies and undo what was found.

What: SGD on  keep * KL(original || new) on plain dummies + KL(original on x || new on T(x)) - log(1 - p(goal)) on
T(x); batch statistics stay frozen, gradients are clipped, the weights are averaged over the steps.
Why it works: small steps from a model in which the found direction is mostly folded out; the last term asks only
that the goal is left, not for a label that an implausible image may not have.
Limits: what was not found is not undone; each round costs accuracy.
Reference: the avoid-the-label term follows Wei et al., "Shared Adversarial Unlearning", NeurIPS 2023.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from deepsanitizer.classifier import Classifier
from deepsanitizer.repair import sharp
from deepsanitizer.repair.pairs import augment, make_pairs
from deepsanitizer.types import Dummies, Run, Trigger


def repair(original: Classifier, dummies: Dummies, bank: Sequence[Trigger], run: Run, *,
           start: Classifier | None = None, steps: int = 40, batch: int = 64, lr: float = 4e-3, momentum: float = 0.9,
           warm: int = 5, keep: float = 4.0, match: float = 1.0, avoid: float = 1.0, weakest: float = 0.3,
           averaging: float = 0.9, clip: float = 1.0, radius: float = 0.0, purpose: str = "tune") -> Classifier:
    """A new classifier, from `start` (or the original) after `steps` steps; 2 * batch images each.

    With a `radius` the steps are sharpness-aware (`repair.sharp`), at twice the cost.
    """
    generator = run.generator(purpose)
    tuned = (start or original).clone()
    parameters = [p for p in tuned.network.parameters() if p.is_floating_point()]
    for parameter in parameters:
        parameter.requires_grad_(True)
    average = [p.detach().clone() for p in parameters]
    optimiser = torch.optim.SGD(parameters, lr=lr, momentum=momentum)
    total = keep + match + avoid
    for step in range(steps):
        run.step("tuning", step, steps)
        rate = min(1, (step + 1) / warm) * (0.05 + 0.95 * (1 + math.cos(math.pi * step / steps)) / 2)
        optimiser.param_groups[0]["lr"] = lr * rate
        chosen = torch.randint(len(dummies), (batch,), generator=generator).to(dummies.images.device)
        plain = augment(dummies.images[chosen], generator) if dummies.movable else dummies.images[chosen]
        pairs = make_pairs(dummies, bank, generator, count=batch, weakest=weakest, chunk=batch // 4, augmented=False,
                           varied=False)
        with torch.no_grad():
            wanted = original(torch.cat([plain, pairs.plain])).softmax(1)

        def descend(images: Tensor, wanted: Tensor, goals: Tensor) -> None:
            logits = tuned(images)
            goal = logits[batch:].softmax(1).gather(1, goals[:, None]).clamp(max=1 - 1e-4)
            loss = (keep * kl(wanted[:batch], logits[:batch]) + match * kl(wanted[batch:], logits[batch:])
                    - avoid * torch.log(1 - goal).mean()) * (3 / total)
            optimiser.zero_grad()
            loss.backward()

        images = torch.cat([plain, pairs.changed])
        descend(images, wanted, pairs.goals)
        if radius:
            with sharp.uphill(parameters, radius):
                descend(images, wanted, pairs.goals)
            run.meter.add(2 * batch, backward=True)
        torch.nn.utils.clip_grad_norm_(parameters, clip)
        optimiser.step()
        # Forward and backward of the tuned network, forward of the original, for weights' gradients too.
        run.meter.add(2 * batch, backward=True)
        run.meter.add(2 * batch, backward=False)
        with torch.no_grad():
            for mean, parameter in zip(average, parameters, strict=True):
                mean.lerp_(parameter, 1 - min(averaging, (step + 1) / (step + 10)))
    with torch.no_grad():
        for mean, parameter in zip(average, parameters, strict=True):
            parameter.copy_(mean)
            parameter.requires_grad_(False)
    return tuned


def kl(wanted: Tensor, logits: Tensor) -> Tensor:
    """Mean KL from probabilities (N, K) to logits (N, K)."""
    return F.kl_div(logits.log_softmax(1), wanted, reduction="batchmean")
