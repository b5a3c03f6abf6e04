"""A tune's step, kept only as far as it acts on what transformations change.

What: the step dW of every linear map becomes the dW' of least

    mean |(dW' - dW) d|^2 + plain * mean |dW' p|^2 + ridge * m * |dW'|^2

over d = a(T(x)) - a(x), what a transformation changes in the map's input a, and inputs p of plain dummies; m is the
mean of the diagonal of the whole quadratic form. In closed form, dW' = dW D (D + plain P + ridge m)^-1 with the two
Gram matrices. All other parameters stay as they were before the step.
Why it works: a gradient step spreads over all directions of a map's input, also over those in which dummies differ
from real images, and there it costs accuracy that no dummy shows. What it does to the trigger needs few directions,
those in which transformed dummies differ from plain ones. On six own networks the step, confined and then
overshot by what each needs, costs half as many points of accuracy and leaves less of the backdoor (research log,
42).
Limits: directions that a trigger shares with plain images are kept.
Reference: none for the whole; projections of steps away from what is to be kept follow Zeng et al., "Continual
learning of context-dependent processing in neural networks", Nature Machine Intelligence 2019.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepsanitizer.classifier import Classifier
from deepsanitizer.repair.pairs import make_pairs
from deepsanitizer.repair.projections import Projection, outer_sums, projections
from deepsanitizer.types import Dummies, Run, Trigger


def repair(start: Classifier, tuned: Classifier, dummies: Dummies, bank: Sequence[Trigger], run: Run, *,
           plain: float = 0.1, ridge: float = 1e-3, images: int = 800, per_image: int = 16, weakest: float = 0.3,
           batch: int = 64, purpose: str = "confine") -> Classifier:
    """A new classifier: `start` and, of the step from it to `tuned`, what acts on transformed dummies only.

    Three times `images` run forward once. Held at once are two Gram matrices of each map, in float32.
    """
    generator = run.generator(purpose)
    pairs = make_pairs(dummies, bank, generator, count=images, weakest=weakest)
    chosen = torch.randint(len(dummies), (len(pairs.plain),), generator=generator).to(dummies.images.device)
    confined = start.clone()
    with torch.no_grad(), tuned.exact(), projections(tuned.network) as after:
        sets = pairs.plain, pairs.changed, dummies.images[chosen]
        grams = _observe(tuned, after, sets, per_image, batch, generator)
        with projections(start.network) as before, projections(confined.network) as written:
            for number, gram in grams.items():
                run.step("confining the step", number, len(written))
                old = before[number].matrix()
                step = (after[number].matrix() - old).double()
                written[number].write(old + _confined(step, gram, plain, ridge).float())
    run.meter.add(3 * len(pairs.plain), backward=False)
    return confined


@dataclass(slots=True)
class _Grams:
    """Sums of outer products of one map's input rows, (groups, in [+ 1], in [+ 1]), over `count` rows."""

    changes: Tensor
    plain: Tensor
    count: int


def _observe(classifier: Classifier, watched: Sequence[Projection], sets: tuple[Tensor, Tensor, Tensor],
             per_image: int, batch: int, generator: torch.Generator) -> dict[int, _Grams]:
    """By map: Gram matrices of what differs between the first two sets, and of the third, at random positions."""
    grams: dict[int, _Grams] = {}

    def hook(number: int) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            projection, third = watched[number], len(output) // 3
            places = projection.positions(output[:third], per_image, generator)
            before, after, plain = (projection.rows(part.float(), places, output.shape[-1])
                                    for part in inputs[0].split(third))
            change = after - before
            sums = outer_sums(change, change), outer_sums(plain, plain)
            known = grams.get(number)
            if known is None:
                grams[number] = _Grams(*sums, len(change))
            else:
                known.changes += sums[0]
                known.plain += sums[1]
                known.count += len(change)
        return record

    handles = [projection.module.register_forward_hook(hook(number)) for number, projection in enumerate(watched)]
    try:
        for parts in zip(*(images.split(batch) for images in sets), strict=True):
            classifier(torch.cat(parts))
    finally:
        for handle in handles:
            handle.remove()
    return grams


def _confined(step: Tensor, gram: _Grams, plain: float, ridge: float) -> Tensor:
    """dW D (D + plain P + ridge m)^-1 for one map, (groups, out, in), in float64."""
    changes = gram.changes.double() / gram.count
    whole = changes + plain * gram.plain.double() / gram.count
    pull = (ridge * whole.diagonal(dim1=1, dim2=2).mean(1)).clamp_min(1e-12)
    whole = whole + pull.view(-1, 1, 1) * torch.eye(whole.shape[1], device=whole.device, dtype=whole.dtype)
    return torch.cholesky_solve(changes @ step.transpose(1, 2), torch.linalg.cholesky(whole)).transpose(1, 2)
