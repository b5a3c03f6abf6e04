"""Universal shifts in feature space: one change of the features at the inspection layer for all images.

Why: whatever a trigger looks like in the image, in the features it is close to one direction. A shift is held inside a
ball of `radius` times the mean norm of the features, which is its natural strength.
Limits: every class has a direction in the last layers; what is found there is no image, and costs the head only.
Reference: the smallest such shift is the statistic of TRD (arXiv 2511.08944, abstract); the ball is ours.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from deepsanitizer.search.universal import margin_to
from deepsanitizer.split import Split
from deepsanitizer.types import Run


@dataclass(frozen=True, slots=True)
class Shifts:
    """Shifts (G, 1, *feature_shape), one for each goal, and their mean margins over features of other classes (G,)."""

    shift: Tensor
    margin: Tensor


def shifts(parts: Split, features: Tensor, labels: Tensor, goals: Sequence[int], run: Run, *,
           generator: torch.Generator, radius: float = 0.5, steps: int = 20, lr: float = 0.1, batch: int = 24,
           spread: float = 0.0, memory_bytes: int = 1 << 29) -> Shifts:
    """Climb the margin of each goal (repeat one for restarts) on features (N, *feature_shape) of classes (N,).

    As many side by side as `memory_bytes` of features allow. They start at zero, or within `spread` of the ball.
    """
    ball = radius * features.flatten(1).norm(dim=1).mean().item()
    share, at_once = 1 - parts.share_before, max(1, memory_bytes // (16 * batch * features[0].numel()))
    found, margins = [], []
    pieces = list(torch.tensor(list(goals), device=features.device).split(at_once))
    for number, goal in enumerate(pieces):
        shift = torch.zeros(len(goal), 1, *features.shape[1:])
        if spread:
            shift += spread * ball / math.sqrt(features[0].numel()) * torch.randn(shift.shape, generator=generator)
        shift = shift.to(features.device).requires_grad_(True)
        optimiser = torch.optim.Adam([shift], lr=lr * ball / math.sqrt(features[0].numel()), betas=(0.5, 0.9))
        for step in range(steps):
            run.step("searching shifts of features", number * steps + step, len(pieces) * steps)
            chosen = torch.randint(len(features), (batch,), generator=generator).to(features.device)
            margin = _margins(parts, features[chosen], shift, goal)
            other = (labels[chosen][None] != goal[:, None]).float()
            loss = -((margin * other).sum(1) / other.sum(1).clamp_min(1)).sum()
            (shift.grad,) = torch.autograd.grad(loss, [shift])
            optimiser.step()
            with torch.no_grad():
                norm = shift.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, *[1] * (shift.ndim - 1))
                shift.mul_((ball / norm).clamp_max(1.0))
            run.meter.add(len(goal) * batch, backward=True, share=share)
        with torch.no_grad():
            some = slice(0, min(len(features), 4 * batch))
            margin = torch.cat([_margins(parts, part, shift, goal) for part in features[some].split(batch)], 1)
            other = (labels[some][None] != goal[:, None]).float()
            margins.append((margin * other).sum(1) / other.sum(1).clamp_min(1))
        run.meter.add(len(goal) * 4 * batch, backward=False, share=share)
        found.append(shift.detach())
    return Shifts(torch.cat(found), torch.cat(margins))


def shifted(parts: Split, features: Tensor, shift: Tensor) -> Tensor:
    """Features (B, ...) under shifts (G, 1, ...) -> (G, B, ...), as features of this layer can be."""
    moved = features[None] + shift
    return moved.clamp_min(0) if parts.nonnegative else moved


def _margins(parts: Split, features: Tensor, shift: Tensor, goal: Tensor) -> Tensor:
    """Margins of each shift's goal (G, B)."""
    moved = shifted(parts, features, shift)
    return margin_to(parts.head(moved.flatten(0, 1)).view(len(goal), len(features), -1), goal)
