"""How fast a removed backdoor returns: fine-tune repaired and clean networks on a few poisoned images.

    python -m deepsanitizer.bench.reactivation models/trojaned --repaired out/model.safetensors --clean models/clean

The three networks (trojaned, repaired, and a clean one of the same architecture that never saw the trigger) take the
same SGD steps on the same training images, a few of which carry the trigger and the attacker's label. A repair that
only hides the backdoor lets it return in fewer steps than a clean network needs to learn it.
Reference: Min et al., "Uncovering, Explaining, and Mitigating the Superficial Safety of Backdoor Defense" (arXiv
2410.09838).
"""

from collections.abc import Iterator, Mapping
from pathlib import Path

import click
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from deepsanitizer import loading
from deepsanitizer.bench.attacks import ATTACKS, Attack, Poison, poison
from deepsanitizer.bench.datasets import load_pack
from deepsanitizer.bench.train import augment
from deepsanitizer.bench.zoo import code_of, truth_of
from deepsanitizer.classifier import Classifier, resolve_compute
from deepsanitizer.evaluation import Evaluation, evaluate
from deepsanitizer.types import InputSpec

AT = (0, 5, 10, 20, 40, 80)


def returning(network: nn.Module, spec: InputSpec, images: Tensor, labels: Tensor, *, at: tuple[int, ...] = AT,
              batch: int = 64, lr: float = 2e-3, momentum: float = 0.9, seed: int = 0) -> Iterator[nn.Module]:
    """The network, in place and in eval mode, after each number of steps of `at`; statistics stay frozen."""
    generator = torch.Generator().manual_seed(seed)
    classifier = Classifier(network.eval(), spec, resolve_compute("cpu"))
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    optimiser = torch.optim.SGD(network.parameters(), lr=lr, momentum=momentum)
    for step in range(max(at) + 1):
        if step in at:
            yield network
        if step == max(at):
            return
        rows = torch.randint(len(images), (batch,), generator=generator)
        x = augment(images[rows], pad=2, flip=False, generator=generator).float() / 255
        optimiser.zero_grad()
        F.cross_entropy(classifier(x), labels[rows]).backward()
        optimiser.step()


def few(data: str, attack: Attack, target: int, *, count: int, share: float, classes: int,
        seed: int = 0) -> tuple[Tensor, Tensor]:
    """`count` training images and labels, `share` of them poisoned."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = (torch.from_numpy(a) for a in load_pack(data, "train"))
    rows = torch.randperm(len(images), generator=generator)[:count]
    plan = Poison(attack=attack, target=target, rate=share)
    return poison(images[rows], labels[rows], plan, num_classes=classes, generator=generator)


def courses(networks: Mapping[str, nn.Module], spec: InputSpec, training: tuple[Tensor, Tensor], data: str,
            attack: Attack, target: int, *, images: int = 1000) -> Iterator[tuple[str, list[Evaluation]]]:
    """For each network its ACC, ASR and RA at every number of steps of `AT`."""
    pixels, labels = load_pack(data, "test")
    for name, network in networks.items():
        yield name, [evaluate(now, pixels[:images], labels[:images], spec=spec, trigger=attack.apply, target=target,
                              device="cpu") for now in returning(network, spec, *training)]


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.argument("trojaned", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--repaired", required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="The repaired weights, .safetensors.")
@click.option("--clean", required=True, type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="A clean model folder of the same architecture.")
@click.option("--count", default=500, help="Training images.")
@click.option("--share", default=0.05, help="Of them poisoned.")
@click.option("--threads", default=1)
def main(trojaned: Path, repaired: Path, clean: Path, count: int, share: float, threads: int) -> None:
    """See the module."""
    torch.set_num_threads(threads)
    truth = truth_of(trojaned)
    if truth["mode"] != "all2one" or truth["trigger"] is None:
        raise click.UsageError(f"{trojaned} is no all-to-one trojaned model")
    old, new, other = (loading.load(folder, import_from=code_of(folder.parent))
                       for folder in (trojaned, trojaned, clean))
    new.network.load_state_dict(load_file(repaired))
    attack = ATTACKS[truth["attack"]](**truth["attack_kwargs"])
    training = few(truth["data"], attack, truth["target"], count=count, share=share, classes=old.spec.num_classes)
    networks = {"trojaned": old.network.float(), "repaired": new.network.float(), "clean": other.network.float()}
    click.echo("| ACC / ASR after steps | " + " | ".join(str(step) for step in AT) + " |")
    click.echo("| --- |" + " --- |" * len(AT))
    for name, course in courses(networks, old.spec, training, truth["data"], attack, truth["target"]):
        click.echo(f"| {name} | " + " | ".join(f"{e.acc:.1f} / {e.asr:.1f}" for e in course) + " |")


if __name__ == "__main__":
    main()
