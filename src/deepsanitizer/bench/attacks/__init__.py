"""The attacks that can be planted: name to a frozen dataclass whose `apply` puts the trigger on images."""

from deepsanitizer.bench.attacks.attack import Attack
from deepsanitizer.bench.attacks.blend import Blend
from deepsanitizer.bench.attacks.grating import Grating
from deepsanitizer.bench.attacks.patch import Patch
from deepsanitizer.bench.attacks.poison import Poison, poison
from deepsanitizer.bench.attacks.quantise import Quantise
from deepsanitizer.bench.attacks.tint import Tint
from deepsanitizer.bench.attacks.warp import Warp

ATTACKS: dict[str, type[Attack]] = {
    "patch": Patch,
    "blend": Blend,
    "grating": Grating,
    "quantise": Quantise,
    "tint": Tint,
    "warp": Warp,
}

__all__ = ["ATTACKS", "Attack", "Blend", "Grating", "Patch", "Poison", "Quantise", "Tint", "Warp", "poison"]
