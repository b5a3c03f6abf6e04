"""Sharpness-aware steps: the gradient is taken where the loss nearby is highest, in place of where the weights are.

What: each weight first moves uphill, in proportion to its own size; a tune takes its gradient there and goes from where
it was.
Why it works: fine-tuning stays in the basin in which the backdoor lies; such steps shrink what large weights of few
channels do.
Limits: twice the passes. On dummies it gains a point of ASR or two (docs/research/log.md, 53), no more, so that
`auto` does without it.
Reference: Zhu et al., "Enhancing Fine-Tuning Based Backdoor Defense with Sharpness-Aware Minimization", ICCV 2023
(FT-SAM); Kwon et al., "ASAM", ICML 2021.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

RADIUS = 1.0


@contextmanager
def uphill(parameters: Sequence[Tensor], radius: float) -> Iterator[None]:
    """Inside, the parameters are `radius` uphill along their gradients, each measured by its own size."""
    with torch.no_grad():
        scaled = [p.abs() * p.grad for p in parameters if p.grad is not None]
        norm = torch.stack([part.norm() for part in scaled]).norm().clamp_min(1e-12)
        moved = [p for p in parameters if p.grad is not None]
        before = [p.clone() for p in moved]
        for parameter, part in zip(moved, scaled, strict=True):
            parameter.add_(parameter.abs() * part, alpha=radius / norm.item())
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(moved, before, strict=True):
                parameter.copy_(value)
