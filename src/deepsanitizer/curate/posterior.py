"""The paper's dummies: features at the inspection layer that the head takes for a class.

What: for each class, features start from uniform noise and take Adam steps until the head classifies them as
that class; they are kept at or above zero where the layer is a ReLU's output. All classes and repeats are one
batch, cut only where it would not fit the stated memory.
Limits: such features need not lie where real ones do; the head classifies them perfectly by construction.
Reference: Fu et al., "FreeEagle", USENIX Security 2023, section 4.2 (1,000 steps, learning rate 1e-2, weight decay
5e-3); "DeepSanitizer", TDSC submission 2025, abstract.
"""

import torch
import torch.nn.functional as F

from deepsanitizer.split import Split
from deepsanitizer.types import FeatureDummies, Run


def curate_features(split: Split, run: Run, *, repeats: int = 4, steps: int = 1000, lr: float = 1e-2,
                    weight_decay: float = 5e-3, memory_bytes: int = 1 << 30) -> FeatureDummies:
    """Features (classes * repeats, *feature_shape), their classes, and the head's confidence in them.

    Optimiser state and features of one cut stay within `memory_bytes`; the head's activations come on top.
    """
    generator = run.generator("feature dummies")
    classes, device = split.classifier.spec.num_classes, split.classifier.compute.device
    labels = torch.arange(classes).repeat_interleave(repeats).to(device)
    size = 1
    for length in split.feature_shape:
        size *= length
    per_cut = max(1, memory_bytes // (size * 4 * 8))  # feature, gradient, two moments, twice for the head
    parts, sure = [], []
    cuts = labels.split(per_cut)
    for number, part in enumerate(cuts):
        features = torch.rand(len(part), *split.feature_shape, generator=generator).to(device)
        features.requires_grad_(True)
        optimiser = torch.optim.Adam([features], lr=lr, weight_decay=weight_decay)
        for step in range(steps):
            if step % 10 == 0:
                run.step("curating feature dummies", number * steps + step, len(cuts) * steps)
            loss = F.cross_entropy(split.head(features), part, reduction="sum")
            (features.grad,) = torch.autograd.grad(loss, [features])
            optimiser.step()
            if split.nonnegative:
                with torch.no_grad():
                    features.clamp_(min=0)
        run.meter.add(len(part) * steps, backward=True, share=1 - split.share_before)
        with torch.no_grad():
            probability = split.head(features).softmax(1)
        parts.append(features.detach())
        sure.append(probability.gather(1, part[:, None])[:, 0])
    return FeatureDummies(torch.cat(parts), labels, torch.cat(sure))
