"""Bounded activations, made drop-in, to compare with: no channel may answer a trigger more than it answers dummies.

What: the bound of a channel is the median (`quantile`), over plain dummies, of its largest value in an image, after
each batch-norm (each convolution in a network without). A bounded network needs operations that the checkpoint's
architecture does not have, so the plain one is relearned in closed form to answer T(x) as the bounded one does.
Why it is here: bounds fall local triggers almost free, and need no goal.
Limits: a full-image trigger drives no channel beyond its bound; the relearning does need transformations that act as
the trigger does. Transformers are bounded at their convolutions only.
Reference: Wang et al., "MM-BD", IEEE S&P 2024, section V (bounds there are optimised on a few clean images).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deepsanitizer.classifier import Classifier, logits_of
from deepsanitizer.repair import closed_form
from deepsanitizer.types import Dummies, Run, Trigger


def repair(original: Classifier, dummies: Dummies, bank: Sequence[Trigger], run: Run, *, quantile: float = 0.5,
           keep: float = 4.0, pairs: int = 1000, purpose: str = "bound") -> Classifier:
    """A new classifier that answers transformed dummies as the bounded original does."""
    limits = bounds(original, dummies.images, quantile=quantile)
    run.meter.add(len(dummies), backward=False)
    return next(closed_form.ladder(original, dummies, bank, run, keeps=(keep,), pairs=pairs, purpose=purpose,
                                   answering=lambda: bounded(original, limits)))


@torch.no_grad()
def bounds(classifier: Classifier, images: Tensor, *, quantile: float) -> list[Tensor]:
    """The bound of each channel (channels,) of each bounded layer, in the order of modules."""
    layers = _layers(classifier.network)
    seen: list[list[Tensor]] = [[] for _ in layers]

    def hook(index: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            seen[index].append(output.float().amax((2, 3)))
        return record

    handles = [layer.register_forward_hook(hook(index)) for index, layer in enumerate(layers)]
    try:
        logits_of(classifier, images)
    finally:
        for handle in handles:
            handle.remove()
    return [torch.cat(parts).quantile(quantile, 0) if parts else torch.empty(0) for parts in seen]


@contextmanager
def bounded(classifier: Classifier, limits: Sequence[Tensor]) -> Iterator[None]:
    """Inside, no channel of a bounded layer gives more than its bound."""
    def hook(limit: Tensor) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
        return lambda module, inputs, output: output.minimum(limit.to(output.dtype).view(1, -1, 1, 1))

    handles = [layer.register_forward_hook(hook(limit))
               for layer, limit in zip(_layers(classifier.network), limits, strict=True) if len(limit)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layers(network: nn.Module) -> list[nn.Module]:
    norms: list[nn.Module] = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    return norms or [m for m in network.modules() if isinstance(m, nn.Conv2d)]
