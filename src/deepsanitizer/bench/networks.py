"""Small networks of different kinds to train for development and calibration: 0.02 to 0.4 M parameters.

`VggElu` has batch-norm and ELU, `Plain` neither batch-norm nor shortcuts, `Vit` layer-norm and attention,
`Mobile` depthwise convolutions. With the demo's residual `SignNet` these are the five kinds of network whose
statistics, activations and shortcuts differ most.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from deepsanitizer.demo.network import SignNet

__all__ = ["Mobile", "Plain", "SignNet", "VggElu", "Vit"]


class VggElu(nn.Module):
    """Normalised images (N, C, 32, 32) to logits: six convolutions with batch-norm and ELU, one linear layer."""

    def __init__(self, num_classes: int = 10, width: int = 24, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for stage in range(3):
            after = width * 2**stage
            for _ in range(2):
                layers += [nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ELU()]
                before = after
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Dropout(0.2), nn.Linear(before * 16, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


class Plain(nn.Module):
    """Normalised images (N, C, 32, 32) to logits: five convolutions with ReLU, no normalisation, two linear layers."""

    def __init__(self, num_classes: int = 43, width: int = 32, channels: int = 3) -> None:
        super().__init__()
        sizes = [channels, width, width, 2 * width, 2 * width, 3 * width]
        layers: list[nn.Module] = []
        for number, (before, after) in enumerate(pairwise(sizes)):
            layers += [nn.Conv2d(before, after, 3, padding=1), nn.ReLU()]
            if number in (1, 3, 4):
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Flatten(), nn.Linear(48 * width, 128), nn.ReLU(),
                                        nn.Linear(128, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        logits: Tensor = self.classifier(self.features(x))
        return logits


class Mobile(nn.Module):
    """Normalised images (N, C, H, W) to logits: halving stem, six depthwise separable convolutions, linear layer."""

    def __init__(self, num_classes: int = 10, width: int = 32, channels: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width),
                                   nn.Hardswish()]
        before = width
        for after, stride in ((width, 2), (2 * width, 1), (2 * width, 2), (3 * width, 1), (3 * width, 1),
                              (4 * width, 1)):
            layers += [nn.Conv2d(before, before, 3, stride, 1, groups=before, bias=False), nn.BatchNorm2d(before),
                       nn.Hardswish(), nn.Conv2d(before, after, 1, bias=False), nn.BatchNorm2d(after), nn.Hardswish()]
            before = after
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(before, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        logits: Tensor = self.classifier(self.features(x).mean((2, 3)))
        return logits


class Vit(nn.Module):
    """Normalised images (N, C, 32, 32) to logits: 64 patches of 4x4 pixels, pre-norm transformer, mean over patches."""

    def __init__(self, num_classes: int = 43, dim: int = 96, depth: int = 4, heads: int = 3, channels: int = 3) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, dim, 4, 4)
        self.place = nn.Parameter(0.02 * torch.randn(1, 64, dim))
        layer = nn.TransformerEncoderLayer(dim, heads, 2 * dim, dropout=0.0, activation="gelu", batch_first=True,
                                           norm_first=True)
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (N, num_classes)."""
        tokens = self.embed(x).flatten(2).transpose(1, 2) + self.place
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits
