"""Data-free evidence, one signal per file: `screen` for the verdict, `collect` for what a repair starts from."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

from deepsanitizer.classifier import Classifier
from deepsanitizer.curate import drawn
from deepsanitizer.search import PROBES
from deepsanitizer.signals import (
    bounded_gap,
    dictionary,
    head_weights,
    lipschitz,
    mm_bd,
    permutation,
    place,
    routes,
    skew,
    stamped_pairs,
    universal,
)
from deepsanitizer.stats import ahead_of_all
from deepsanitizer.triggers import FAMILIES
from deepsanitizer.types import Dummies, Evidence, Run

UNIVERSAL_FAMILIES = ("add", "blend", "patch", "filter", "warp")
QUICK_FAMILIES = ("add", "blend", "filter", "warp")  # what a free patch reaches, patches by place reach too
# Families of the screen, at which share of their strength and at which rate. A faint trigger stands out at half of it,
# where natural patterns no longer work; a tint that sits in a corner of what filters can do, beyond it and at a higher
# rate. What an additive or a free patch search finds, these or places find too.
SCREEN_FAMILIES = (("blend", "blend", 1.0, None), ("blend faint", "blend", 0.5, None), ("filter", "filter", 1.0, None),
                   ("filter strong", "filter", 5 / 3, 0.3), ("warp", "warp", 1.0, None))
LARGE_DICTIONARIES = ("grating", "square")
SHORT_UNIVERSAL: dict[str, Any] = {"steps": 28, "batch": 16, "short": (8, 8), "finalists": 5, "score_on": 64}
# Dummies on which the entries of a large dictionary are tried in haste.
SHORT_DICTIONARY: dict[str, Any] = {"first": 10, "second": 48}

SCREEN_DUMMIES = 300
Natural = Literal["natural grating", "natural warp", "natural filter", "natural permutation"]
NATURAL: tuple[Natural, ...] = get_args(Natural)
Dummy = Literal["permutation", "stamped pairs", "stamps", "random warps", "tints", "routes"]
DUMMY: tuple[Dummy, ...] = get_args(Dummy)
Further = Literal[Dummy, Natural]
FURTHER: tuple[Further, ...] = (*DUMMY, *NATURAL)

__all__ = ["FURTHER", "QUICK_FAMILIES", "SCREEN_DUMMIES", "SCREEN_FAMILIES", "UNIVERSAL_FAMILIES",
           "Dummy", "Further", "collect", "further", "on_dummies", "on_natural_images", "permutation_window", "screen",
           "told_again", "windows_for"]


def windows_for(shape: tuple[int, int, int]) -> list[tuple[int, int]]:
    """Window sizes and strides of the search by place: 6, 10 and 14 pixels of a 32-pixel image, at most half."""
    side = min(shape[1:])
    pairs = {(max(2, round(side * window / 32)), max(1, round(side * stride / 32)))
             for window, stride in ((6, 3), (10, 4), (14, 6))}
    return sorted((window, stride) for window, stride in pairs if window <= side // 2)


def permutation_window(shape: tuple[int, int, int]) -> tuple[int, int]:
    """Size and stride of the search for permutations: the smallest window, at wider steps, for a patch that a window
    holds in part is found, too.
    """
    window, stride = windows_for(shape)[0]
    return window, max(1, round(stride * 5 / 3))


def screen(classifier: Classifier, dummies: Dummies, run: Run, *, purpose: str = "screen") -> tuple[Evidence, ...]:
    """The short searches on which the calibrated verdict rests, and what is shown beside it; under 50,000 passes for 10
    classes with `SCREEN_DUMMIES`.

    What the null distributions in `calibration.json` were measured with: a change here needs them measured again.
    """
    evidence = []
    for name, family, share, lr in SCREEN_FAMILIES:
        item = universal.detect(classifier, dummies, run, family=family, share=share, lr=lr,
                                purpose=f"{purpose} {name}", **SHORT_UNIVERSAL)
        evidence.append(replace(item, result=replace(item.result, name=name)))
    evidence.append(dictionary.detect(classifier, dummies, run, family="grating", **SHORT_DICTIONARY))
    # Larger windows reach natural evidence, and add nothing to the others (docs/research/log.md, 36).
    window, stride = windows_for(classifier.spec.shape)[0]
    found = place.detect(classifier, dummies, run, window=window, stride=stride, purpose=purpose, first=(6, 8),
                         second=(10, 14), score_on=100)
    evidence += [replace(item, result=replace(item.result, name=name))
                 for name, item in zip(("place", "own goals", "pairs"), found, strict=True)]
    evidence += [mm_bd.detect(classifier, run, images=4, steps=45, lr=5e-2, momentum=0.9, plain=dummies.plain_margin),
                 bounded_gap.detect(classifier, dummies, run), skew.detect(classifier, run),
                 head_weights.detect(classifier), lipschitz.detect(classifier)]
    return tuple(_short(item, item.result.name) for item in evidence)


def further(classifier: Classifier, dummies: Dummies, run: Run, *, names: Sequence[Further] = FURTHER
            ) -> Iterator[Evidence]:
    """The searches that follow a screen that accuses no goal, one by one as they are asked for: of patches, and
    probes, on its dummies, the others on natural images.
    """
    yield from on_dummies(classifier, dummies, run, names=[name for name in DUMMY if name in names])
    yield from on_natural_images(classifier, run, names=[name for name in NATURAL if name in names], dummies=dummies)


def on_dummies(classifier: Classifier, dummies: Dummies, run: Run, *, names: Sequence[Dummy] = DUMMY
               ) -> Iterator[Evidence]:
    """Patches for goals of their own (16,000 passes for 10 classes), stamps for one source and goal (9,000), probes of
    three kinds for one goal (7,000), patches for one source and goal (28,000). A change needs the nulls measured again.
    """
    wide = permutation_window(classifier.spec.shape)
    for name in names:
        if name == "routes":
            item = routes.detect(classifier, dummies, run, window=wide[0], purpose="screen")
        elif name == "stamped pairs":
            item = stamped_pairs.detect(classifier, dummies, run, window=wide[0])
        elif name in PROBES:
            item = dictionary.probe(classifier, dummies, run, kind=name)
            if item.result.family == "place":  # a repair searches patches, with windows that hold such a one
                item = replace(item, result=replace(item.result, window=wide[0]))
        else:
            item = permutation.detect(classifier, dummies, run, window=wide[0], stride=wide[1], purpose="screen")
        yield _short(item, name)


def on_natural_images(classifier: Classifier, run: Run, *, names: Sequence[Natural] = NATURAL,
                      dummies: Dummies | None = None) -> Iterator[Evidence]:
    """Gratings, warps and filters for one goal (2,500, 4,700 and 4,700 passes for 10 classes), and patches for goals of
    their own (16,000), on images with the statistics of photographs. A change needs the nulls measured again.
    Thresholds are in plain margins of `dummies`, where a repair follows, for it is measured on such.
    """
    images = drawn(classifier, SCREEN_DUMMIES, run)
    window, stride = permutation_window(classifier.spec.shape)
    for name in names:
        if name in ("natural warp", "natural filter"):
            family = name.removeprefix("natural ")
            item = universal.detect(classifier, images, run, family=family, purpose=f"screen {family}",
                                    **SHORT_UNIVERSAL)
            if family == "filter":
                item = replace(item, result=replace(item.result, statistic=ahead_of_all(
                    item.result.per_target, images.plain_margin)))
        elif name == "natural grating":
            item = dictionary.detect(classifier, images, run, family="grating", **SHORT_DICTIONARY)
        else:
            # All classes are sources: with fewer, clean networks rise more than others (docs/research/log.md, 58).
            item = permutation.detect(classifier, images, run, window=window, stride=stride, purpose="screen",
                                      most_sources=None)
        yield _short(item if dummies is None else _restated(item, images, dummies), name)


def _restated(item: Evidence, images: Dummies, dummies: Dummies) -> Evidence:
    """Evidence with its threshold as far above the runner-up in plain margins of the dummies as it is in those of the
    images, which are less sure.
    """
    result, limit = item.result, max(item.result.runner_up or 0.0, 0.0)
    if result.threshold is None:
        return item
    unit = dummies.plain_margin if result.kind == "all2all" else universal.unit_of(dummies)
    above = (result.threshold - limit) * unit / images.plain_margin
    return replace(item, result=replace(result, threshold=limit + above))


def _short(item: Evidence, name: str) -> Evidence:
    return replace(item, result=replace(item.result, name=f"screen {name}", stage="screen"))


def told_again(screened: Sequence[Evidence]) -> dict[str, list[Evidence]]:
    """The searches of a screen that full evidence would only repeat: at the family's own strength, by dictionary, and
    by place, which tells of pairs, too. By the search's name there; a score is still in plain margins, as long as the
    results were not `placed`.
    """
    alike = {"grating", *(name for name, family, share, rate in SCREEN_FAMILIES
                          if (name, share, rate) == (family, 1.0, None))}
    found: dict[str, list[Evidence]] = {}
    for item in screened:
        result = item.result
        search = name = result.name.removeprefix("screen ")
        if name in ("place", "pairs"):
            search, name = f"place {result.window}", f"{name} {result.window}"
        elif name not in alike:
            continue
        again = replace(item, result=replace(result, name=name, stage="full", passes=0.0, statistic=None))
        found.setdefault(search, []).append(again)
    return found


def collect(classifier: Classifier, dummies: Dummies, run: Run, *, purpose: str = "scan",
            families: tuple[str, ...] = UNIVERSAL_FAMILIES, quick: bool = False, left_out: Sequence[str] = (),
            screened: Sequence[Evidence] = (), until: Callable[[Sequence[Evidence]], bool] | None = None,
            ahead: Sequence[str] = ()) -> tuple[Evidence, ...]:
    """All signals on one model but those `left_out` (families, `permutation`, `place` and a window), in a fixed order;
    `quick` takes fewer steps, images and finalists throughout. What a screen has searched in the same way, `screened`
    (as `screen` returns it), is told on the scale of full evidence.

    With `until`, nothing of the screen stands in for a search: all is searched anew, what is named in `ahead` first,
    until it holds of what was found. Only what was not reached by then is told from the screen, where it is there.
    """
    known = told_again(screened)
    names = [*families, *(name for name, kind in FAMILIES.items() if kind.entries),
             *(f"place {window}" for window, _ in windows_for(classifier.spec.shape)), "permutation"]
    evidence: list[Evidence] = []
    enough = False
    for name in sorted((name for name in names if name not in left_out), key=lambda name: name not in ahead):
        if enough or (until is None and name in known):
            evidence += known.get(name, [])
        else:
            evidence += _searched(name, classifier, dummies, run, purpose=purpose, quick=quick)
            enough = until is not None and until(evidence)
    return tuple(evidence)


def _searched(name: str, classifier: Classifier, dummies: Dummies, run: Run, *, purpose: str,
              quick: bool) -> list[Evidence]:
    """One search of full evidence by its name: a family, a window by place, or permutations."""
    kind, _, size = name.partition(" ")
    if kind == "place":
        window, stride = next(pair for pair in windows_for(classifier.spec.shape) if pair[0] == int(size))
        one, _, pair = place.detect(classifier, dummies, run, window=window, stride=stride, purpose=purpose,
                                    first=(6, 8) if quick else (8, 10), second=(10, 16) if quick else (14, 20),
                                    score_on=80 if quick else 160)
        return [one, pair]  # goals of their own: better told by the search for permutations
    if kind == "permutation":
        window, stride = permutation_window(classifier.spec.shape)
        return [permutation.detect(classifier, dummies, run, window=window, stride=stride, purpose=purpose)]
    if FAMILIES[name].entries:
        haste = SHORT_DICTIONARY if quick and name in LARGE_DICTIONARIES else {}
        return [dictionary.detect(classifier, dummies, run, family=name, **haste)]
    if quick:
        return [universal.detect(classifier, dummies, run, family=name, purpose=purpose, steps=24, batch=24,
                                 short=(8, 10), finalists=5)]
    return [universal.detect(classifier, dummies, run, family=name, purpose=purpose)]
