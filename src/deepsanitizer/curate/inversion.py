"""Input-space dummies: procedural images pulled towards what the network was trained on.

What: the logits of the pixels take Adam steps on cross-entropy to a class (all classes in equal numbers), on the
distance of every batch-norm layer's batch statistics to its stored ones, and on a little total variation, under
random shifts and flips.
Why it works: stored batch-norm statistics are what remains of the training data in the weights. Their weight
decides whether a trigger works on the dummies as it does on real images.
Without batch-norm: no statistics are stored. The substitute are random changes of brightness and contrast in
each channel at every step besides the shifts, so that a dummy must be recognisable and not one exact pattern.
Limits: poorer without batch-norm; a class the network never predicts gets no good dummies.
Reference: Yin et al., "Dreaming to Distill", CVPR 2020 (batch-norm matching); Ghiasi et al., "Plug-In
Inversion", ICML 2022 (augmentation in its place).
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from deepsanitizer.classifier import Classifier, logits_of
from deepsanitizer.curate.procedural import procedural
from deepsanitizer.types import Dummies, Run


def batch_norms(network: nn.Module) -> list[_BatchNorm]:
    """The batch-norm layers that store statistics."""
    return [m for m in network.modules() if isinstance(m, _BatchNorm) and m.running_mean is not None]


class _Moments(torch.autograd.Function):
    """Mean and variance over all but the channels, (C,) each, in float32.

    The batch-norm kernel computes both in one sweep and in any memory format; its own gradient leaves them out,
    so it is written here: d mean / dx = 1 / M, d var / dx = 2 (x - mean) / M.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        _, mean, scale = torch.native_batch_norm(x, None, None, None, None, True, 0.0, 1e-5)
        mean, variance = mean.float(), scale.float().pow(-2) - 1e-5
        ctx.save_for_backward(x, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, mean_grad: Tensor, variance_grad: Tensor) -> Tensor:
        x, mean = ctx.saved_tensors
        count = x.numel() // x.shape[1]
        slope = 2 * variance_grad / count
        offset = mean_grad / count - slope * mean
        slope, offset = (v.to(x.dtype).view(1, -1, *([1] * (x.ndim - 2))) for v in (slope, offset))
        return torch.addcmul(offset, x, slope)


class StatisticsLoss:
    """Records the inputs of batch-norm layers; the loss is their distance from the stored statistics."""

    def __init__(self, layers: list[_BatchNorm]) -> None:
        self.layers = layers
        self.inputs: dict[_BatchNorm, Tensor] = {}
        self._hooks = [layer.register_forward_hook(self._record) for layer in layers]

    def _record(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(layer, _BatchNorm)
        self.inputs[layer] = inputs[0]

    def loss(self) -> Tensor:
        """Mean over layers of the squared normalised error of the mean and of the deviation."""
        total = torch.zeros(())
        for layer, x in self.inputs.items():
            assert layer.running_mean is not None
            assert layer.running_var is not None
            mean, variance = _Moments.apply(x)  # type: ignore[no-untyped-call]
            shift = (mean - layer.running_mean) ** 2 / (layer.running_var + 1e-3)
            ratio = (variance.clamp_min(1e-6) / (layer.running_var + 1e-6)).sqrt()
            total = total.to(shift.device) + shift.mean() + (ratio - 1).pow(2).mean()
        return total / max(1, len(self.inputs))

    def remove(self) -> None:
        """Take the hooks off the network again."""
        for hook in self._hooks:
            hook.remove()


def invert(classifier: Classifier, count: int, run: Run, *, purpose: str = "dummies", steps: int = 40,
           lr: float = 0.15, batch: int = 250, statistics_weight: float = 60.0,
           variation_weight: float = 0.2, confidence: tuple[float, float] | None = None,
           least_met: float = 0.65) -> Dummies:
    """Curate `count` input-space dummies; costs `count * steps` passes, without batch-norm at most a batch more.

    `purpose` names the random stream: another purpose gives independent dummies. With `confidence` each dummy is
    pushed to its class only up to a probability drawn from that range, and not as far as it goes. Where, without
    batch-norm, fewer than `least_met` of a batch reach their classes, it and all that follow are curated in place: a
    network that reads absolute positions gives no shifted image its class (docs/research/log.md, 45).
    """
    generator = run.generator(purpose)
    layers = batch_norms(classifier.network)
    statistics = StatisticsLoss(layers)
    device, classes = classifier.compute.device, classifier.spec.num_classes
    wanted = (torch.arange(count) % classes)[torch.randperm(count, generator=generator)]
    batches, done = [], 0

    def curated(targets: Tensor, *, moved: bool) -> Tensor:
        nonlocal done
        start = procedural(len(targets), classifier.spec.shape, generator)
        pixels = torch.logit(start.clamp(0.02, 0.98)).to(device).requires_grad_(True)
        optimiser = torch.optim.Adam([pixels], lr=lr)
        floor = None if confidence is None else _log_probabilities(confidence, len(targets), generator).to(device)
        for step in range(steps):
            run.step("curating dummies", min(done, count * steps), count * steps)
            optimiser.param_groups[0]["lr"] = lr * (1 + math.cos(math.pi * step / steps)) / 2 + 1e-3
            image = torch.sigmoid(pixels)
            view = _augment(image, generator, moved=moved, colours=not layers)
            short = F.cross_entropy(classifier(view), targets, reduction="none")
            loss = (short if floor is None else F.relu(short + floor)).mean()
            if layers:
                loss = loss + statistics_weight * statistics.loss()
            loss = loss + variation_weight * _total_variation(image)
            (pixels.grad,) = torch.autograd.grad(loss, [pixels])
            optimiser.step()
            run.meter.add(len(targets), backward=True)
            done += len(targets)
        return torch.sigmoid(pixels.detach())

    def met(found: Tensor, targets: Tensor) -> float:
        run.meter.add(len(found), backward=False)
        return (logits_of(classifier, found).to(device).argmax(1) == targets).float().mean().item()

    moved = True
    try:
        for targets in (part.to(device) for part in wanted.split(batch)):
            found = curated(targets, moved=moved)
            if not layers and moved and met(found, targets) < least_met:
                moved = False
                found = curated(targets, moved=False)
            batches.append(found)
    finally:
        statistics.remove()
    images = torch.cat(batches)
    run.meter.add(count, backward=False)
    how = ("inversion with batch-norm matching" if layers else
           f"inversion with {'augmentation' if moved else 'changes of colour, in place'} (no batch-norm)")
    return Dummies(images, logits_of(classifier, images).to(device), how, bool(layers), moved)


def _log_probabilities(span: tuple[float, float], count: int, generator: torch.Generator) -> Tensor:
    """Of probabilities drawn uniformly from a range, (count,)."""
    low, high = span
    return torch.log(low + (high - low) * torch.rand(count, generator=generator))


def curate_ordinary(classifier: Classifier, count: int, run: Run, *, purpose: str, steps: int = 60, lr: float = 0.3,
                    statistics_weight: float = 240.0, confidence: tuple[float, float] = (0.1, 0.9)) -> Dummies:
    """Dummies as unsure as ordinary images and closer to the stored statistics: what a repair learns from.

    Those of a scan are surer of their class than real images are, and what a repair keeps on them it need not keep
    on real ones (docs/research/log.md, 21). Needs batch-norm.
    """
    return invert(classifier, count, run, purpose=purpose, steps=steps, lr=lr, statistics_weight=statistics_weight,
                  confidence=confidence)


def _augment(image: Tensor, generator: torch.Generator, *, moved: bool, colours: bool) -> Tensor:
    view = image
    if moved:
        shift = torch.randint(-2, 3, (2,), generator=generator).tolist()
        view = torch.roll(view, shift, (2, 3))
        if torch.rand(1, generator=generator) < 0.5:
            view = view.flip(3)
    if colours:
        size = (len(view), view.shape[1], 1, 1)
        gain = 1 + 0.3 * (2 * torch.rand(size, generator=generator) - 1)
        offset = 0.15 * (2 * torch.rand(size, generator=generator) - 1)
        view = ((view - 0.5) * gain.to(view.device) + 0.5 + offset.to(view.device)).clamp(0, 1)
    return view


def _total_variation(image: Tensor) -> Tensor:
    vertical = (image[:, :, 1:] - image[:, :, :-1]).abs().mean() if image.shape[2] > 1 else image.sum() * 0
    horizontal = (image[..., 1:] - image[..., :-1]).abs().mean() if image.shape[3] > 1 else image.sum() * 0
    return vertical + horizontal
