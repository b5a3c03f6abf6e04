"""The published method, as literally as its public description allows: fine-tune the head on dummy features.

What: the features curated for each class at the inspection layer (`curate/posterior.py`), with that class as the
label, are a training set; the head takes epochs of SGD with cross-entropy on it; the extractor is left alone.
Why it is here: to compare with. The head classifies these dummies almost perfectly by construction, so the loss is
close to 0 at step 0 and little changes; the loss at step 0 is returned and stands in the report.
Limits: the public description is an abstract; optimiser, learning rate and epochs are ours.
Reference: "DeepSanitizer: Data-free Backdoor Removal in Deep Neural Networks", TDSC submission 2025, abstract.
"""

import torch
import torch.nn.functional as F

from deepsanitizer.classifier import Classifier
from deepsanitizer.split import Split, split
from deepsanitizer.types import FeatureDummies, Run


def repair(original: Split, dummies: FeatureDummies, run: Run, *, epochs: int = 20, batch: int = 64, lr: float = 1e-2,
           momentum: float = 0.9, purpose: str = "paper") -> tuple[Classifier, float]:
    """A new classifier with a fine-tuned head, and the mean cross-entropy on the dummies before the first step."""
    generator = run.generator(purpose)
    edited = original.classifier.clone()
    parts = split(edited, original.layer)
    wanted = set(parts.head_parameters)
    parameters = [p for name, p in edited.network.named_parameters() if name in wanted]
    for parameter in parameters:
        parameter.requires_grad_(True)
    with torch.no_grad():
        loss_step0 = F.cross_entropy(parts.head(dummies.features), dummies.labels).item()
    optimiser = torch.optim.SGD(parameters, lr=lr, momentum=momentum)
    for epoch in range(epochs):
        run.step("fine-tuning the head on dummies", epoch, epochs)
        order = torch.randperm(len(dummies.labels), generator=generator).to(dummies.labels.device)
        for chosen in order.split(batch):
            loss = F.cross_entropy(parts.head(dummies.features[chosen]), dummies.labels[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            run.meter.add(len(chosen), backward=True, share=1 - original.share_before)
    for parameter in parameters:
        parameter.requires_grad_(False)
    return edited, loss_step0
