"""Channel-Lipschitzness pruning, to compare with: silence the channels that stand out of their layer.

What: for each batch norm after a convolution, a channel's bound is the largest singular value of its filter
(inputs, kernel positions), times |gamma| / sigma; channels above the layer's mean + u standard deviations get
gamma = beta = 0. Convolutions without batch norm have no such scale and are judged, and silenced, alone.
Why it is here: it needs neither data nor a search, and takes a moment.
Limits: a trigger that no single channel carries stays (docs/research/log.md); there is no goal, and no proof of one.
Reference: Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022, section 4.
"""

import torch
from torch import Tensor, nn

from deepsanitizer.classifier import Classifier


@torch.no_grad()
def repair(original: Classifier, *, u: float = 3.0) -> tuple[Classifier, int]:
    """A new classifier, and how many channels were silenced. `u` is in standard deviations of a layer's bounds."""
    pruned = original.clone()
    silenced = 0
    for convolution, norm in _pairs(pruned.network):
        bounds = _bounds(convolution, norm)
        out = bounds > bounds.mean() + u * bounds.std()
        silenced += int(out.sum())
        module = convolution if norm is None else norm
        module.weight[out] = 0
        if module.bias is not None:
            module.bias[out] = 0
    return pruned, silenced


def _bounds(convolution: nn.Conv2d, norm: nn.BatchNorm2d | None) -> Tensor:
    """The Lipschitz bound of each output channel, (out,)."""
    filters = convolution.weight.flatten(2)  # (out, in, positions)
    if norm is not None and norm.running_var is not None:
        scale = norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
        filters = filters * scale[:, None, None]
    bounds: Tensor = torch.linalg.matrix_norm(filters.cpu(), 2)
    return bounds.to(filters.device)


def _pairs(network: nn.Module) -> list[tuple[nn.Conv2d, nn.BatchNorm2d | None]]:
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
