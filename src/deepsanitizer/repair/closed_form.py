"""Relearn every linear map in closed form so that transformed images answer like plain ones.

What: layer by layer, in the order of computation, with inputs a taken from the network as edited so far and
responses z from the original,

    min over W:  mean |W a(T(x)) - z(x)|^2 + keep * mean |W a(p) - z(p)|^2 + ridge * d * |W - W0|^2

over pairs (x, T(x)) and plain dummies p; d is the mean of the Gram matrix's diagonal. One linear solve a layer.
Why it works: the trigger's direction is folded out of each layer where that costs plain responses least, without
the detours of gradient steps.
Limits: needs transformations that act as the real trigger does; far stronger ones swamp the fit (rows are weighted
by 1 / (1 + r^2), r the relative residual, where `robust`). Attention layers with masks or separate key and value
inputs are left alone.
Reference: none for the whole; a least-squares relative of unlearning by distillation.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from deepsanitizer.classifier import Classifier
from deepsanitizer.repair.pairs import Pairs, augment, make_pairs
from deepsanitizer.repair.projections import Projection, projections
from deepsanitizer.types import Dummies, Run, Trigger


def repair(original: Classifier, dummies: Dummies, bank: Sequence[Trigger], run: Run, *, keep: float = 4.0,
           ridge: float = 0.03, scarcity: float = 50.0, pairs: int = 4000, rows: int = 16_000, robust: bool = False,
           weakest: float = 0.6, purpose: str = "closed form", start: Classifier | None = None) -> Classifier:
    """A new classifier, every linear map relearned. `rows` bounds the rows of each of the two terms.

    The ridge is multiplied by 1 + scarcity * inputs / rows: a wide last layer has few rows (one an image) and would
    fit the dummies rather than the classes (docs/research/log.md, 15).
    """
    generator = run.generator(purpose)
    made = make_pairs(dummies, bank, generator, count=pairs, weakest=weakest)
    plain = torch.cat([dummies.images, augment(dummies.images, generator)])
    edited = (start or original).clone()
    with torch.no_grad(), original.exact(), edited.exact():
        _relearn(original, edited, made, plain, run, generator, keep, ridge, scarcity, rows, robust)
    return edited


@dataclass(slots=True)
class _Sample:
    """Where one projection is observed on one set of images, and what it answered there originally."""

    positions: list[Tensor]
    responses: list[Tensor]
    width: int


def _relearn(original: Classifier, edited: Classifier, made: Pairs, plain: Tensor, run: Run,
             generator: torch.Generator, keep: float, ridge: float, scarcity: float, rows: int, robust: bool) -> None:
    with projections(original.network) as before, projections(edited.network) as after:
        on_pairs = _observe(original, before, made.plain, rows, generator)
        on_plain = _observe(original, before, plain, rows, generator)
        run.meter.add(len(made.plain) + len(plain), backward=False)
        order = [index for index in on_pairs if index in on_plain]
        for done, index in enumerate(order):
            run.step("relearning layers in closed form", done, len(order))
            projection = after[index]
            changed = _rows(edited, projection, made.changed, on_pairs[index])
            kept = _rows(edited, projection, plain, on_plain[index])
            run.meter.add(len(made.changed) + len(plain), backward=False, share=(done + 1) / len(order))
            wanted, plainly = (torch.cat(sample[index].responses) for sample in (on_pairs, on_plain))
            scarce = 1 + scarcity * changed.shape[2] / (len(changed) + len(kept))
            projection.write(_solve(projection.matrix(), changed, wanted, kept, plainly, keep, ridge * scarce,
                                    robust))


def _solve(old: Tensor, changed: Tensor, wanted: Tensor, kept: Tensor, plainly: Tensor, keep: float, ridge: float,
           robust: bool) -> Tensor:
    """The least-squares solution, (groups, out, in). Gram matrices in float32, the solve in float64."""
    residual = wanted - torch.einsum("rgi,goi->rgo", changed, old)
    if robust:
        relative = residual.flatten(1).norm(dim=1) / plainly.flatten(1).norm(dim=1).mean().clamp_min(1e-6)
        weight = (1 / (1 + relative**2)).sqrt()[:, None, None]
        changed, residual = changed * weight, residual * weight
    kept_residual = plainly - torch.einsum("rgi,goi->rgo", kept, old)
    gram = sum(_product(rows, rows) * (scale / len(rows)) for rows, scale in ((changed, 1.0), (kept, keep)))
    right = (_product(changed, residual) / len(changed) + _product(kept, kept_residual) * (keep / len(kept)))
    assert isinstance(gram, Tensor)
    gram = gram.double()
    pull = (ridge + 1e-3) * gram.diagonal(dim1=1, dim2=2).mean(1)
    gram = gram + pull.clamp_min(1e-12).view(-1, 1, 1) * torch.eye(gram.shape[1], device=gram.device,
                                                                  dtype=gram.dtype)
    step = torch.cholesky_solve(right.double(), torch.linalg.cholesky(gram))
    return old + step.transpose(1, 2).float()


def _product(left: Tensor, right: Tensor) -> Tensor:
    """(R, g, i), (R, g, o) -> (g, i, o): sums over rows, one matrix product a group."""
    return torch.bmm(left.permute(1, 2, 0), right.permute(1, 0, 2))


def _observe(classifier: Classifier, watched: list[Projection], images: Tensor, rows: int,
             generator: torch.Generator, *, batch: int = 200) -> dict[int, _Sample]:
    """Responses of all projections at random positions in one pass, by index, in the order of first use."""
    samples: dict[int, _Sample] = {}
    per_image = max(1, rows // max(1, len(images)))

    def hook(index: int) -> object:
        def record(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            sample = samples.setdefault(index, _Sample([], [], output.shape[-1]))
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


def _rows(classifier: Classifier, projection: Projection, images: Tensor, sample: _Sample, *,
          batch: int = 200) -> Tensor:
    """Input rows of one projection at a sample's positions; the pass stops there."""
    collected: list[Tensor] = []

    def record(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        positions = sample.positions[len(collected)]
        collected.append(projection.rows(inputs[0].float(), positions, sample.width))
        raise _StopForwardError

    handle = projection.module.register_forward_pre_hook(record)
    try:
        for part in images.split(batch):
            try:
                classifier(part)
            except _StopForwardError:
                continue
    finally:
        handle.remove()
    return torch.cat(collected)
