"""Channel Lipschitzness: does one channel amplify far more than the others of its layer?

What: for each convolution, the bound of each channel (`channels.lipschitz_bounds`); the score is the largest distance
above its layer's mean, in standard deviations of the layer.
Why it works, where it does: a local trigger needs a channel that answers it strongly.
Limits: names no class; blind to triggers that no single channel carries; layers of fewer than eight channels are left
out. Costs nothing.
Reference: Zheng et al., "Data-free Backdoor Removal based on Channel Lipschitzness", ECCV 2022, section 4.
"""

from deepsanitizer.channels import convolutions, lipschitz_bounds
from deepsanitizer.classifier import Classifier
from deepsanitizer.signals.outlier import not_applicable
from deepsanitizer.types import Evidence, SignalResult


def detect(classifier: Classifier, *, least_channels: int = 8) -> Evidence:
    """Not applicable to networks without convolutions."""
    layers = [lipschitz_bounds(convolution, norm) for convolution, norm in convolutions(classifier.network)
              if convolution.out_channels >= least_channels]
    if not layers:
        return not_applicable("channel bounds", "no convolution has enough channels")
    furthest = [((bounds.max() - bounds.mean()) / bounds.std().clamp_min(1e-12)).item() for bounds in layers]
    return Evidence(SignalResult(name="channel bounds", applicable=True, statistic=max(furthest), margin=max(furthest),
                                 runner_up=sorted(furthest)[-2] if len(furthest) > 1 else None,
                                 reason="names a channel, not a class"))
