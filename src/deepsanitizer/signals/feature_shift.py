"""Universal shift in feature space: which class does one small shift at the inspection layer reach most easily?

What: for each class one shift is added to the features of dummies at the inspection layer and climbs the class's mean
margin inside a ball of `radius` times the mean norm of the features; all classes in one batch. The score is the
target's lead over the next class, in plain margins.
Why it works, where it does: whatever the trigger looks like in the image, in the features it is close to one direction.
Limits: every class has a direction in the last layers; a lead there says little. Costs the head only.
Reference: the smallest such shift is the statistic of TRD (arXiv 2511.08944, abstract); the ball is ours.
"""

import math

import torch

from deepsanitizer.search.universal import margin_to
from deepsanitizer.signals.outlier import of_classes
from deepsanitizer.split import Split
from deepsanitizer.stats import lead_over, top_two
from deepsanitizer.types import Dummies, Evidence, Run


def detect(parts: Split, dummies: Dummies, run: Run, *, radius: float = 0.5, steps: int = 20, lr: float = 0.1,
           batch: int = 24, memory_bytes: int = 1 << 29, purpose: str = "feature shift") -> Evidence:
    """All classes side by side, as many at once as `memory_bytes` of features allow."""
    before, generator, device = run.meter.passes, run.generator(purpose), parts.classifier.compute.device
    with torch.no_grad():
        features = torch.cat([parts.extractor(some) for some in dummies.images[:256].split(64)])
    labels = dummies.labels[: len(features)]
    run.meter.add(len(features), backward=False, share=parts.share_before)
    ball = radius * features.flatten(1).norm(dim=1).mean().item()
    at_once = max(1, memory_bytes // (16 * batch * features[0].numel()))
    margins: list[float] = []
    pieces = list(torch.arange(parts.classifier.spec.num_classes).split(at_once))
    for number, piece in enumerate(pieces):
        goal = piece.to(device)
        shift = torch.zeros(len(piece), 1, *features.shape[1:], device=device, requires_grad=True)
        optimiser = torch.optim.Adam([shift], lr=lr * ball / math.sqrt(features[0].numel()), betas=(0.5, 0.9))
        for step in range(steps):
            run.step("searching shifts of features", number * steps + step, len(pieces) * steps)
            chosen = torch.randint(len(features), (batch,), generator=generator).to(device)
            margin = _margins(parts, features[chosen], shift, goal)
            other = (labels[chosen][None] != goal[:, None]).float()
            loss = -((margin * other).sum(1) / other.sum(1).clamp_min(1)).sum()
            (shift.grad,) = torch.autograd.grad(loss, [shift])
            optimiser.step()
            with torch.no_grad():
                norm = shift.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (shift.ndim - 1))
                shift.mul_((ball / norm).clamp_max(1.0))
            run.meter.add(len(piece) * batch, backward=True, share=1 - parts.share_before)
        with torch.no_grad():
            some = slice(0, min(len(features), 4 * batch))
            margin = torch.cat([_margins(parts, part, shift, goal) for part in features[some].split(batch)], 1)
            other = (labels[some][None] != goal[:, None]).float()
            margins += ((margin * other).sum(1) / other.sum(1).clamp_min(1)).tolist()
        run.meter.add(len(piece) * 4 * batch, backward=False, share=1 - parts.share_before)
    _, best, runner_up = top_two(margins)
    return of_classes("feature shift", margins, lead_over(best, runner_up) / dummies.plain_margin,
                      passes=run.meter.passes - before)


def _margins(parts: Split, features: torch.Tensor, shift: torch.Tensor, goal: torch.Tensor) -> torch.Tensor:
    """Features (B, ...) under shifts (G, 1, ...) -> margins of each shift's goal (G, B)."""
    moved = features[None] + shift
    if parts.nonnegative:
        moved = moved.clamp_min(0)
    return margin_to(parts.head(moved.flatten(0, 1)).view(len(goal), len(features), -1), goal)
