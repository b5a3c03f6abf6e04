"""The attacks that can be planted: name to a frozen dataclass whose `apply` puts the trigger on images."""

from deepsanitizer.bench.attacks.attack import Attack
from deepsanitizer.bench.attacks.blend import Blend
from deepsanitizer.bench.attacks.patch import Patch
from deepsanitizer.bench.attacks.poison import Poison, poison

ATTACKS: dict[str, type[Attack]] = {
    "patch": Patch,
    "blend": Blend,
}

__all__ = ["ATTACKS", "Attack", "Blend", "Patch", "Poison", "poison"]
