"""A network with its normalisation: images in [0, 1] in, float32 logits out. And where it computes.

This is the one place that knows about mean and std, memory format, precision, and networks that return a tuple
or an object with `.logits`.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from deepsanitizer.errors import CannotJudgeError, UsageError
from deepsanitizer.types import Compute, InputSpec


def resolve_compute(device: str = "auto") -> Compute:
    """Choose device and precision: CUDA where there is one, bfloat16 only where the processor has it natively."""
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"there is no device {device!r}", "Choose auto, cpu or cuda.")
    has_cuda = torch.cuda.is_available()
    if device == "cuda" and not has_cuda:
        raise UsageError("this torch sees no CUDA device", "Use --device cpu, or install a CUDA build of torch.")
    if has_cuda and device != "cpu":
        return Compute(torch.device("cuda"), torch.cuda.is_bf16_supported(including_emulation=False))
    can = torch.cpu.get_capabilities()
    return Compute(torch.device("cpu"), bool(can.get("avx512_bf16") or can.get("amx_bf16")))


def pick_logits(output: Any) -> Tensor:
    """The logits in what a network returned: a tensor, the first of a tuple, or `.logits`."""
    if isinstance(output, tuple | list) and output:
        output = output[0]
    output = getattr(output, "logits", output)
    if not isinstance(output, Tensor):
        raise CannotJudgeError(f"the network returns a {type(output).__name__}, not logits",
                               "Wrap it so that it returns a tensor, a tuple that starts with one, or .logits.")
    return output


class Classifier(nn.Module):
    """images (N, C, H, W) in [0, 1] -> logits (N, K), float32. Holds the network, it does not copy it."""

    def __init__(self, network: nn.Module, spec: InputSpec, compute: Compute) -> None:
        super().__init__()
        self.network = network
        self.spec = spec
        self.compute = compute
        for name, values in (("mean", spec.mean), ("std", spec.std)):
            value = torch.tensor(values, device=compute.device).view(1, -1, 1, 1)
            self.register_buffer(name, value, persistent=False)

    mean: Tensor
    std: Tensor

    def normalise(self, images: Tensor) -> Tensor:
        """What the network is fed for images in [0, 1]."""
        x = (images.to(self.compute.device) - self.mean) / self.std
        return x.contiguous(memory_format=torch.channels_last)

    def autocast(self) -> torch.autocast:
        """bfloat16 where the processor has it, unless inside `exact`."""
        return torch.autocast(self.compute.device.type, torch.bfloat16, enabled=self.compute.bfloat16)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float32."""
        assert images.shape[1:] == self.spec.shape, images.shape
        with self.autocast():
            logits = pick_logits(self.network(self.normalise(images)))
        return logits.float()

    @contextmanager
    def exact(self) -> Iterator["Classifier"]:
        """Compute in float32 inside, whatever the processor."""
        before, self.compute = self.compute, Compute(self.compute.device, False)
        try:
            yield self
        finally:
            self.compute = before

    def clone(self) -> "Classifier":
        """An independent copy, to be changed."""
        return Classifier(copy.deepcopy(self.network), self.spec, self.compute)


def classifier_of(network: nn.Module, spec: InputSpec, compute: Compute) -> Classifier:
    """A private copy of a network in eval mode, float32, on the device; checked with one batch of two images.

    Raises CannotJudgeError where the network does not take the input or does not give K finite logits.
    """
    private = copy.deepcopy(network).float().eval().to(compute.device).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for parameter in private.parameters():
        parameter.requires_grad_(False)
    classifier = Classifier(private, spec, compute)
    probe = torch.rand(2, *spec.shape, generator=torch.Generator().manual_seed(0))
    try:
        with torch.no_grad():
            logits = classifier(probe)
    except (RuntimeError, ValueError, IndexError, TypeError, AssertionError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise CannotJudgeError(f"the network does not take images of shape {spec.shape}: {reason}",
                               "Check --input-shape (or input_shape in config.json).") from error
    if logits.shape != (2, spec.num_classes):
        raise CannotJudgeError(f"the network gives an output of shape {tuple(logits.shape[1:])}, "
                               f"not {spec.num_classes} logits", "Check --num-classes and --input-shape.")
    if not logits.isfinite().all():
        raise CannotJudgeError("the network's logits are not finite", "The weights may be damaged.")
    return classifier


@torch.no_grad()
def logits_of(classifier: Classifier, images: Tensor, *, batch: int = 500) -> Tensor:
    """Logits (N, K) on the CPU, batch by batch."""
    return torch.cat([classifier(part).cpu() for part in images.split(batch)])
