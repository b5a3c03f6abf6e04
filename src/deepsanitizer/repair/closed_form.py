"""Relearn every linear map in closed form so that transformed images answer like plain ones.

What: layer by layer, in the order of computation, with inputs a taken from the network as edited so far and
responses z from the original,

    min over W:  mean |W a(T(x)) - z(x)|^2 + k * mean |W a(p) - z(p)|^2 + ridge * d * |W - W0|^2

over pairs (x, T(x)) and plain dummies p; d is the mean of the Gram matrix's diagonal; k falls from early * keep in the
first layer to keep in the last, because early maps serve every class (log, 24). One linear solve a layer.
Why it works: the trigger's direction is folded out of each layer where that costs plain responses least, without
the detours of gradient steps.
How it is cheap: all images go through the network as one batch, and each map is solved and rewritten at the moment
the pass reaches it, so that one forward pass edits the whole network. Where the batch would not fit in `memory`, the
part of the network before each map runs again for it, in small batches; the result is the same.
Limits: needs transformations that act as the real trigger does; far stronger ones swamp the fit (rows are weighted
by 1 / (1 + r^2), r the relative residual, where `robust`). Attention layers with masks or separate key and value
inputs are left alone.
Reference: none for the whole; a least-squares relative of unlearning by distillation.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from deepsanitizer.classifier import Classifier
from deepsanitizer.repair.pairs import augment, make_pairs
from deepsanitizer.repair.projections import Projection, outer_sums, projections
from deepsanitizer.types import Dummies, Run, Trigger

LIVE_MAPS = 4  # feature maps of the largest layer that a forward pass holds at once: a branch, its sum, workspace


def repair(original: Classifier, dummies: Dummies, bank: Sequence[Trigger], run: Run, *, keep: float = 4.0,
           early: float = 16.0, ridge: float = 0.03, scarcity: float = 50.0, pairs: int = 1000, rows: int = 16_000,
           robust: bool = False, weakest: float = 0.6, purpose: str = "closed form", start: Classifier | None = None,
           memory: int = 4 << 30) -> Classifier:
    """A new classifier, every linear map relearned. `rows` bounds the rows of each of the two terms, `memory` (bytes)
    the feature maps held at once.

    The ridge is multiplied by 1 + scarcity * inputs / rows: a wide last layer has few rows (one an image) and would
    fit the dummies rather than the classes (docs/research/log.md, 15).
    """
    return next(ladder(original, dummies, bank, run, keeps=(keep,), early=early, ridge=ridge, scarcity=scarcity,
                       pairs=pairs, rows=rows, robust=robust, weakest=weakest, purpose=purpose, start=start,
                       memory=memory))


def ladder(original: Classifier, dummies: Dummies, bank: Sequence[Trigger], run: Run, *, keeps: Sequence[float],
           early: float = 16.0, ridge: float = 0.03, scarcity: float = 50.0, pairs: int = 1000, rows: int = 16_000,
           robust: bool = False, weakest: float = 0.6, purpose: str = "closed form", start: Classifier | None = None,
           memory: int = 4 << 30,
           answering: Callable[[], AbstractContextManager[None]] | None = None) -> Iterator[Classifier]:
    """`repair` at several weights, one after another as they are asked for; the original is observed once.

    `answering` opens a context in which the original answers T(x) as is wanted; without it T(x) is to answer like x.
    """
    generator = run.generator(purpose)
    made = make_pairs(dummies, bank, generator, count=pairs, weakest=weakest)
    plain = dummies.images
    if dummies.movable:
        plain = torch.cat([plain, augment(plain, generator)])
    with torch.no_grad(), original.exact(), projections(original.network) as watched:
        with answering() if answering else nullcontext():
            on_pairs = _observe(original, watched, made.changed if answering else made.plain, rows, generator)
        on_plain = _observe(original, watched, plain, rows, generator)
        run.meter.add(len(made.plain) + len(plain), backward=False)
    order = [index for index in on_pairs if index in on_plain]  # the last layer last
    images = torch.cat([made.changed, plain])
    targets = {index: _join(on_pairs[index], on_plain[index], early ** (later / max(1, len(order) - 1)))
               for later, index in enumerate(reversed(order))}
    fits = LIVE_MAPS * len(images) * max((t.floats for t in targets.values()), default=0) * 4 <= memory

    for keep in keeps:
        edited = (start or original).clone()
        rewrite = partial(_rewrite, keep=keep, ridge=ridge, scarcity=scarcity, robust=robust)
        with torch.no_grad(), edited.exact(), projections(edited.network) as after:
            relearn = _in_one_pass if fits else _by_prefixes
            relearn(edited, [(after[index], targets[index]) for index in order], images, rewrite, run)
        yield edited


@dataclass(frozen=True, slots=True)
class _Target:
    """Where one projection is read, (n, p) positions of each image, pairs before plain, and what it is to answer."""

    positions: tuple[Tensor, Tensor]
    responses: Tensor
    rows_of_pairs: int
    width: int
    floats: int  # in one image's output
    kept: float  # how much more than in the last layer plain dummies weigh


@dataclass(slots=True)
class _Sample:
    """Where one projection is observed on one set of images, and what it answered there originally."""

    positions: list[Tensor]
    responses: list[Tensor]
    width: int
    floats: int


_Rewriter = Callable[[Projection, _Target, Tensor], None]


def _join(pairs: _Sample, plain: _Sample, kept: float) -> _Target:
    first, second = torch.cat(pairs.responses), torch.cat(plain.responses)
    return _Target((torch.cat(pairs.positions), torch.cat(plain.positions)), torch.cat([first, second]), len(first),
                   pairs.width, pairs.floats, kept)


def _in_one_pass(edited: Classifier, maps: Sequence[tuple[Projection, _Target]], images: Tensor, rewrite: _Rewriter,
                 run: Run) -> None:
    """One forward pass of all images; each map is solved and rewritten just before it is applied."""
    def hook(number: int, projection: Projection, target: _Target) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def before(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            run.step("relearning layers in closed form", number, len(maps))
            x, split = inputs[0].float(), len(target.positions[0])
            rewrite(projection, target, torch.cat([
                projection.rows(part, positions, target.width)
                for part, positions in zip((x[:split], x[split:]), target.positions, strict=True)]))
        return before

    handles = [projection.module.register_forward_pre_hook(hook(number, projection, target))
               for number, (projection, target) in enumerate(maps)]
    try:
        edited(images)
    finally:
        for handle in handles:
            handle.remove()
    run.meter.add(len(images), backward=False)


def _by_prefixes(edited: Classifier, maps: Sequence[tuple[Projection, _Target]], images: Tensor, rewrite: _Rewriter,
                 run: Run, *, batch: int = 200) -> None:
    """The same in bounded memory: for each map the images run up to it, batch by batch."""
    for number, (projection, target) in enumerate(maps):
        run.step("relearning layers in closed form", number, len(maps))
        split = len(target.positions[0])
        rewrite(projection, target, torch.cat([
            projection.rows(_input_of(edited, projection, some), where, target.width)
            for part, positions in zip((images[:split], images[split:]), target.positions, strict=True)
            for some, where in zip(part.split(batch), positions.split(batch), strict=True)]))
        run.meter.add(len(images), backward=False, share=(number + 1) / len(maps))


def _rewrite(projection: Projection, target: _Target, inputs: Tensor, *, keep: float, ridge: float, scarcity: float,
             robust: bool) -> None:
    """Solve one map for its input rows, pairs before plain, and put the solution in its place."""
    scarce, split = 1 + scarcity * inputs.shape[2] / len(inputs), target.rows_of_pairs
    projection.write(_solve(projection.matrix(), inputs[:split], target.responses[:split], inputs[split:],
                            target.responses[split:], keep * target.kept, ridge * scarce, robust))


def _solve(old: Tensor, changed: Tensor, wanted: Tensor, kept: Tensor, plainly: Tensor, keep: float, ridge: float,
           robust: bool) -> Tensor:
    """The least-squares solution, (groups, out, in). Gram matrices in float32, the solve in float64."""
    residual = wanted - torch.einsum("rgi,goi->rgo", changed, old)
    if robust:
        relative = residual.flatten(1).norm(dim=1) / plainly.flatten(1).norm(dim=1).mean().clamp_min(1e-6)
        weight = (1 / (1 + relative**2)).sqrt()[:, None, None]
        changed, residual = changed * weight, residual * weight
    kept_residual = plainly - torch.einsum("rgi,goi->rgo", kept, old)
    gram = sum(outer_sums(rows, rows) * (scale / len(rows)) for rows, scale in ((changed, 1.0), (kept, keep)))
    right = (outer_sums(changed, residual) / len(changed) + outer_sums(kept, kept_residual) * (keep / len(kept)))
    assert isinstance(gram, Tensor)
    gram = gram.double()
    pull = (ridge + 1e-3) * gram.diagonal(dim1=1, dim2=2).mean(1)
    gram = gram + pull.clamp_min(1e-12).view(-1, 1, 1) * torch.eye(gram.shape[1], device=gram.device,
                                                                  dtype=gram.dtype)
    step = torch.cholesky_solve(right.double(), torch.linalg.cholesky(gram))
    return old + step.transpose(1, 2).float()


def _observe(classifier: Classifier, watched: list[Projection], images: Tensor, rows: int,
             generator: torch.Generator, *, batch: int = 200) -> dict[int, _Sample]:
    """Responses of all projections at random positions in one pass, by index, in the order of first use."""
    samples: dict[int, _Sample] = {}
    per_image = max(1, rows // max(1, len(images)))

    def hook(index: int) -> object:
        def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            sample = samples.setdefault(index, _Sample([], [], output.shape[-1], output[0].numel()))
            positions = watched[index].positions(output, per_image, generator)
            sample.positions.append(positions)
            sample.responses.append(watched[index].responses(output.float(), positions))
        return watched[index].module.register_forward_hook(record)

    hooks = [hook(index) for index in range(len(watched))]
    try:
        for part in images.split(batch):
            classifier(part)
    finally:
        for handle in hooks:
            handle.remove()  # type: ignore[attr-defined]
    parts = len(images.split(batch))
    # A module called twice in one pass is not one linear map of one input.
    return {index: sample for index, sample in samples.items() if len(sample.positions) == parts}


class _StopForwardError(Exception):
    pass


def _input_of(classifier: Classifier, projection: Projection, images: Tensor) -> Tensor:
    """What one projection is fed for a batch; the pass stops there."""
    seen: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].float())
        raise _StopForwardError

    handle = projection.module.register_forward_pre_hook(record)
    try:
        classifier(images)
    except _StopForwardError:
        return seen[0]
    finally:
        handle.remove()
    raise AssertionError(f"{projection.name} was not reached")
