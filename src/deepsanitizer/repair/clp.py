"""Channel-Lipschitzness pruning, to compare with: silence the channels that stand out of their layer.

What: for each batch norm after a convolution, a channel's bound is the largest singular value of its filter
(inputs, kernel positions), times |gamma| / sigma; channels above the layer's mean + u standard deviations get
gamma = beta = 0. Convolutions without batch norm have no such scale and are judged, and silenced, alone.
Why it is here: it needs neither data nor a search, and takes a moment.
Limits: a trigger that no single channel carries stays (docs/research/log.md); there is no goal, and no proof of one.
Reference: Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022, section 4.
"""

import torch

from deepsanitizer.channels import convolutions, lipschitz_bounds
from deepsanitizer.classifier import Classifier


@torch.no_grad()
def repair(original: Classifier, *, u: float = 3.0) -> tuple[Classifier, int]:
    """A new classifier, and how many channels were silenced. `u` is in standard deviations of a layer's bounds."""
    pruned = original.clone()
    silenced = 0
    for convolution, norm in convolutions(pruned.network):
        bounds = lipschitz_bounds(convolution, norm)
        out = bounds > bounds.mean() + u * bounds.std()
        silenced += int(out.sum())
        module = convolution if norm is None else norm
        module.weight[out] = 0
        if module.bias is not None:
            module.bias[out] = 0
    return pruned, silenced
