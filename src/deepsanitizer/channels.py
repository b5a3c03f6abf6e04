"""What single channels can do: Lipschitz bounds from the weights, and bounds on their activations from dummies.

Both serve a signal and a remedy each. References: Zheng et al., ECCV 2022, section 4 (channel Lipschitzness); Wang et
al., "MM-BD", IEEE S&P 2024, section V (bounded activations).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from deepsanitizer.classifier import Classifier, logits_of


@torch.no_grad()
def lipschitz_bounds(convolution: nn.Conv2d, norm: nn.BatchNorm2d | None) -> Tensor:
    """The Lipschitz bound of each output channel, (out,)."""
    filters = convolution.weight.flatten(2)  # (out, in, positions)
    if norm is not None and norm.running_var is not None:
        scale = norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
        filters = filters * scale[:, None, None]
    bounds: Tensor = torch.linalg.matrix_norm(filters.cpu(), 2)
    return bounds.to(filters.device)


def convolutions(network: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d | None]]:
    """Convolutions with the batch norm that follows in order of definition, where it fits."""
    modules = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d)]
    pairs: list[tuple[nn.Conv2d, nn.BatchNorm2d | None]] = []
    for number, module in enumerate(modules):
        if isinstance(module, nn.Conv2d):
            following = modules[number + 1] if number + 1 < len(modules) else None
            fits = (isinstance(following, nn.BatchNorm2d) and following.affine
                    and following.num_features == module.out_channels)
            pairs.append((module, following if fits else None))  # type: ignore[arg-type]
    return pairs


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
