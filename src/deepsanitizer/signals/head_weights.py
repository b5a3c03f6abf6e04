"""Weight signature of the last layer: does one class's row of weights stand out?

What: the mean weight of each class's row of the last linear layer, less the mean over classes, in deviations of all its
weights; the statistic is by how many spreads of the others the largest leads the next.
Why it works, where it does: training on triggered images of all classes pushes the target's weights up as a whole.
Limits: looks at one layer; a trojan that leaves the head alone is not seen. Costs nothing.
Reference: Fields et al., "Trojan Signatures in DNN Weights", ICCV Workshops 2021; the statistic is ours.
"""

import torch
from torch import nn

from deepsanitizer.classifier import Classifier
from deepsanitizer.signals.outlier import not_applicable, of_classes
from deepsanitizer.stats import standing_out
from deepsanitizer.types import Evidence

LEAST_SPREAD = 0.02  # of row means, in deviations of the weights


@torch.no_grad()
def detect(classifier: Classifier) -> Evidence:
    """Not applicable where no linear layer, or 1x1 convolution, gives the logits."""
    classes = classifier.spec.num_classes
    layers = [m for m in classifier.network.modules()
              if (isinstance(m, nn.Linear) and m.out_features == classes)
              or (isinstance(m, nn.Conv2d) and m.out_channels == classes and m.kernel_size == (1, 1))]
    if not layers:
        return not_applicable("head weights", "no linear layer gives the logits")
    rows = layers[-1].weight.flatten(1).float()
    means = (rows.mean(1) / rows.std().clamp_min(1e-12)).cpu()
    values = (means - means.mean()).tolist()
    return of_classes("head weights", values, standing_out(values, LEAST_SPREAD))
