"""Images with the statistics of photographs, drawn from a generator and nothing else.

What: dead leaves whose sizes follow a power law, with shaded faces, over 1/f noise; luminance carries most of the
variance and colours are faint and shared by an image, its brightness and contrast drawn anew for each.
Why: curated dummies are surer of their class than photographs and fine-grained: a warp or a tint that moves every
photograph does not move them (docs/research/log.md, 54). What a network does to photographs of anything, it does to
these.
Limits: they show nothing, and a network gives many of them a few of its classes; what a trigger does to one class
alone must be asked of curated dummies.
Reference: Lee, Mumford, Huang, "Occlusion models for natural images", IJCV 2001 (sizes); Ruderman, Cronin, Chiao,
"Statistics of cone responses to natural images", JOSA A 1998 (luminance and colour).
"""

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor

from deepsanitizer.classifier import Classifier, logits_of
from deepsanitizer.types import Dummies, Run

LEAST, LARGEST = 0.06, 0.5  # radii of leaves, in image heights


def drawn(classifier: Classifier, count: int, run: Run) -> Dummies:
    """`count` such images with the network's own logits, the same for every network with such an input and seed; costs
    one forward pass each.
    """
    images = natural(count, classifier.spec.shape, run.generator("natural images")).to(classifier.compute.device)
    run.meter.add(count, backward=False)
    return Dummies(images, logits_of(classifier, images).to(classifier.compute.device),
                   "drawn with the statistics of photographs")


def blended(classifier: Classifier, dummies: Dummies, run: Run, *, share: float = 0.25) -> Dummies:
    """The dummies with a share of a natural image in each, those that keep their answer: less sure of it, and nearer to
    what a trigger was trained on (docs/research/log.md, 57). Costs one forward pass each.
    """
    pictures = natural(len(dummies), classifier.spec.shape, run.generator("natural images"))
    images = (1 - share) * dummies.images + share * pictures.to(dummies.images.device)
    run.meter.add(len(images), backward=False)
    logits = logits_of(classifier, images).to(dummies.logits.device)
    same = logits.argmax(1) == dummies.labels
    return replace(dummies, images=images[same], logits=logits[same], how=f"{dummies.how}, with natural images in them")


def natural(count: int, shape: tuple[int, int, int], generator: torch.Generator, *, leaves: int = 60,
            pixels_at_once: int = 1 << 22) -> Tensor:
    """Draw `count` images (count, C, H, W) in [0, 1]; of other than three channels all are the luminance."""
    at_once = max(1, pixels_at_once // (shape[1] * shape[2]))
    return torch.cat([_drawn(min(at_once, count - first), shape, generator, leaves)
                      for first in range(0, count, at_once)])


def _drawn(count: int, shape: tuple[int, int, int], generator: torch.Generator, leaves: int) -> Tensor:
    channels, height, width = shape

    def uniform() -> Tensor:
        return torch.rand(count, 1, 1, generator=generator)

    def normal() -> Tensor:
        return torch.randn(count, 1, 1, generator=generator)

    rows, columns = torch.arange(height).view(1, height, 1), torch.arange(width).view(1, 1, width)
    luminance = 0.8 * _coloured_noise(count, height, width, 1.5, generator)
    red, green = (0.5 * normal().expand(count, height, width) for _ in range(2))  # against blue, against magenta
    share = 0.1 + 0.9 * uniform() ** 2  # how many of the leaves an image has
    for _ in range(leaves):
        at = uniform()
        radius = height / ((1 - at) / LEAST**2 + at / LARGEST**2).sqrt()  # density falls with the cube
        longer, angle = torch.exp(0.25 * normal()), math.pi * uniform()
        down, right = rows - uniform() * height, columns - uniform() * width
        along = (right * angle.cos() + down * angle.sin()) / longer
        across = (down * angle.cos() - right * angle.sin()) * longer
        distance = torch.where(uniform() < 0.4, torch.maximum(along.abs(), across.abs()), torch.hypot(along, across))
        inside = (radius - distance + 0.5).clamp(0, 1) * (uniform() < share)
        face = normal() + (along * normal() + across * normal()) / (4 * radius)
        luminance, red, green = (old + inside * (new - old) for old, new in (
            (luminance, face), (red, normal()), (green, normal())))
    luminance = luminance + 0.25 * uniform() * _coloured_noise(count, height, width, 1.0, generator)
    luminance = luminance + 0.5 * ((columns / width - 0.5) * normal() + (rows / height - 0.5) * normal())
    luminance = luminance - luminance.mean((1, 2), keepdim=True)
    luminance = luminance / _deviation(luminance)
    brightness, contrast = 0.2 + 0.55 * uniform(), 0.06 + 0.24 * uniform()
    grey = brightness + contrast * luminance
    colour = 0.25 * contrast * (0.3 + 1.4 * uniform())
    red, green = colour * red + 0.06 * normal(), 0.7 * colour * green + 0.04 * normal()
    if channels == 3:
        image = torch.stack([grey + red + 0.5 * green, grey - green, grey - red + 0.5 * green], 1)
    else:
        image = grey[:, None].expand(count, channels, height, width)
    soft = uniform()[:, None]
    mixed: Tensor = (1 - soft) * image + soft * _softened(image)
    return mixed.clamp(0, 1)


def _coloured_noise(count: int, height: int, width: int, power: float, generator: torch.Generator) -> Tensor:
    """Noise (count, H, W) of unit deviation whose amplitude falls with that power of the frequency."""
    frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None])
    amplitude = frequency.clamp_min(1e-6) ** -power
    amplitude[0, 0] = 0
    white = torch.randn(count, height, width, generator=generator)
    field: Tensor = torch.fft.irfft2(torch.fft.rfft2(white) * amplitude, s=(height, width))
    return field.div(_deviation(field))


def _deviation(field: Tensor) -> Tensor:
    """Of each of (count, H, W), never 0: (count, 1, 1)."""
    return field.std((1, 2), keepdim=True, correction=min(1, field[0].numel() - 1)).clamp_min(1e-6)


def _softened(image: Tensor) -> Tensor:
    """Blurred over three pixels; edges mirrored, where there is anything to mirror."""
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line).expand(image.shape[1], 1, 3, 3)
    edge = "reflect" if min(image.shape[2:]) > 1 else "replicate"
    return F.conv2d(F.pad(image, (1, 1, 1, 1), mode=edge), kernel, groups=image.shape[1])
