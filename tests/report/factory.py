"""Reports as the pipeline makes them, of every kind, small and without a model."""

import hashlib
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from deepsanitizer.pictures import difference_picture, to_picture
from deepsanitizer.types import (
    Agreement,
    LayerChange,
    ModelFacts,
    Outcome,
    Picture,
    SanitizeReport,
    ScanReport,
    SearchComparison,
    SignalResult,
    Suspect,
)

CIFAR = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "long " * 100,
    "ممنوع الوقوف",
    "\x1b[31mred\x1b[0m\x07",
    "\u202egnp.exe",
    "[bold]markup[/bold]",
    "{{ 7*7 }}{% raw %}",
    "a & b < c > d",
    "'); DROP TABLE --",
    "line\nbreak\ttab",
    "{target}{0}",
]


def scene(seed: int, size: int = 32, channels: int = 3) -> Tensor:
    """A procedural picture: smooth noise and a few discs."""
    rng = np.random.default_rng(seed)
    coarse = torch.from_numpy(rng.random((1, channels, 5, 5), dtype=np.float32))
    image = torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic").clamp(0, 1)[0]
    rows, columns = np.mgrid[:size, :size]
    for _ in range(4):
        y, x = rng.uniform(0, size), rng.uniform(0, size)
        radius = rng.uniform(size / 10, size / 4)
        disc = torch.from_numpy((rows - y) ** 2 + (columns - x) ** 2 < radius**2)
        image = torch.where(disc, torch.from_numpy(rng.random((channels, 1, 1), dtype=np.float32)), image)
    return image.float()


def pictures(
    group: str, target: str, *, family: str = "place", count: int = 4, size: int = 32
) -> list[Picture]:
    """The pattern, dummies without and with it, and differences."""
    rng = np.random.default_rng(7)
    pattern = torch.zeros(3, size, size)
    if family == "place":
        pattern[:, 1:7, 1:7] = torch.from_numpy(rng.integers(0, 2, (3, 6, 6)).astype(np.float32))
    else:
        waves = torch.sin(torch.arange(size) / size * 6 * 2 * torch.pi)
        pattern += waves * 0.5 + 0.5
    found = [to_picture(pattern, role="pattern", caption="recovered pattern", group=group)]
    for index in range(count):
        plain = scene(index, size)
        with_it = (
            torch.where(pattern.sum(0, keepdim=True) > 0, pattern, plain)
            if family == "place"
            else (plain + 0.12 * (pattern - 0.5)).clamp(0, 1)
        )
        found += [
            to_picture(plain, role="dummy", caption=f"answer: {index}", group=group),
            to_picture(with_it, role="triggered", caption=f"answer: {target}", group=group),
            difference_picture(plain, with_it, group=group),
        ]
    return found


def signal(
    name: str, classes: int, *, peak: int | None = None, height: float = 30.0, seed: int = 0, **more: Any
) -> SignalResult:
    """A search's margins over classes, one of them perhaps far out."""
    rng = np.random.default_rng(seed)
    values = rng.normal(-1.0, 2.0, classes)
    if peak is not None:
        values[peak] = height
    order = np.argsort(values)
    mad = max(1.0, float(np.median(np.abs(values - np.median(values)))))
    return SignalResult(
        name=name,
        applicable=True,
        per_target=[float(value) for value in values],
        target=int(order[-1]),
        margin=float(values[order[-1]]),
        runner_up=float(values[order[-2]]),
        z=float((values[order[-1]] - np.median(values)) / mad),
        success=0.994 if peak is not None else 0.12,
        strength=0.12,
        passes=12_800.0,
        **more,
    )


def scan(*, classes: int = 10, names: list[str] | None = None, **changes: Any) -> ScanReport:
    """A clean scan, with whatever else is asked for."""
    report = ScanReport(
        model=ModelFacts(
            path="downloads/street-signs/model",
            format="folder",
            architecture="networks:resnet18",
            parameters=11_181_642,
            input_shape=[3, 32, 32],
            num_classes=classes,
            class_names=names,
            batch_norm=True,
            notes=["The prefix 'module.' was removed from 122 keys."],
        ),
        verdict="clean",
        calibrated=False,
        score=1.6,
        threshold=5.0,
        explanation="The strongest class reaches a margin of 1.6; an accusation needs 5.",
        suspects=[],
        signals=[
            signal("add", classes, seed=1),
            signal("place", classes, seed=2),
            SignalResult(name="warp", applicable=False, reason="the input is smaller than 8 pixels"),
        ],
        inspection_layer="layer4.1",
        versions={"deepsanitizer": "0.1.0", "torch": "2.13.0", "python": "3.12.3"},
        config={"effort": "standard", "layer": "auto", "steps": 40, "windows": [6, 10, 14], "timeout": None},
        seed=0,
        device="cpu (2 threads, float32)",
        seconds={"load": 0.21, "curate": 31.4, "search": 74.9, "verdict": 0.01, "total": 106.5},
        passes={"curate": 40_000.0, "search": 66_400.0, "total": 106_400.0},
        input_sha256=hashlib.sha256(b"in").hexdigest(),
        limits=[
            "Only the families add, blend, filter, warp and place were searched. A trigger of another kind "
            "is not found.",
            "Everything was measured on artificial pictures, not on real data.",
            "The threshold is not calibrated: how often it is wrong is not known.",
        ],
        reproduce="deepsanitizer scan downloads/street-signs/model --import-from src --seed 0",
        pictures=[],
    )
    return replace(report, **changes)


def backdoored(
    classes: int = 10, target: int = 0, names: list[str] | None = None, **changes: Any
) -> ScanReport:
    """One target, found by two families, with pictures."""
    label = f"{target} ({names[target]})" if names else str(target)
    found = signal("place", classes, peak=target, height=34.2, seed=3, threshold=5.0, score=6.8)
    filled = {
        "verdict": "backdoored",
        "score": found.margin,
        "explanation": f"A small pattern sends 99 % of dummies of other classes to class {target}; the next "
        "class reaches a margin of 3.",
        "suspects": [
            Suspect(
                kind="all2one",
                source=None,
                target=target,
                family="place",
                score=34.2,
                where="in the upper left corner",
            ),
            Suspect(kind="all2one", source=None, target=target, family="add", score=12.3),
        ],
        "signals": [
            found,
            signal("add", classes, peak=target, height=12.3, seed=4),
            signal("warp", classes, seed=5),
        ],
        "pictures": pictures(f"place, class {label}", label)
        + pictures(f"add, class {label}", label, family="add"),
    }
    return scan(classes=classes, names=names, **{**filled, **changes})


def matrix(classes: int, cells: dict[tuple[int, int], float]) -> list[list[float | None]]:
    """Source by goal margins with an empty diagonal."""
    values = np.random.default_rng(11).normal(-3, 1.5, (classes, classes))
    for place, value in cells.items():
        values[place] = value
    return [
        [None if row == column else float(values[row, column]) for column in range(classes)]
        for row in range(classes)
    ]


def specific() -> ScanReport:
    """Source 1 to target 9, suspicious only."""
    return backdoored(
        target=9,
        names=CIFAR,
        verdict="suspicious",
        suspects=[
            Suspect(
                kind="specific",
                source=1,
                target=9,
                family="place",
                score=7.3,
                where="in the lower right corner",
            )
        ],
        signals=[
            signal(
                "places by source",
                10,
                peak=9,
                height=7.3,
                matrix=matrix(10, {(1, 9): 7.3}),
                threshold=5.0,
                source=1,
                kind="specific",
            )
        ],
    )


def all2all() -> ScanReport:
    """Every class to the next."""
    cells = {(row, (row + 1) % 10): 3.0 + row / 5 for row in range(10)}
    return backdoored(
        names=CIFAR,
        suspects=[
            Suspect(
                kind="all2all", source=None, target=None, family="place", score=4.8, where="at the bottom"
            )
        ],
        signals=[signal("places by source", 10, matrix=matrix(10, cells))],
    )


def sanitized(base: ScanReport, outcome: Outcome = "accepted", **changes: Any) -> SanitizeReport:
    """What was done about a scan."""
    classes, target = base.model.num_classes, base.suspects[0].target if base.suspects else 0
    worked = outcome == "accepted"
    after = -1.2 if worked else 28.0
    share = np.random.default_rng(5).uniform(0.9, 1.0, classes)
    filled: dict[str, Any] = {name: getattr(base, name) for name in ScanReport.__dataclass_fields__}
    tried = outcome in ("accepted", "rolled_back")
    filled |= {
        "method": "closed_form + tune" if tried else "auto",
        "outcome": outcome,
        "accepted": worked,
        "reason": {
            "accepted": "No search finds the backdoor any more, and the answers on fresh dummies were kept.",
            "rolled_back": "The place search still finds class 14 after three rounds.",
            "unchanged": "The model was found clean.",
            "unsupported": "The network has no layer that the remedies can change.",
        }[outcome],
        "agreement": Agreement(overall=0.972, per_class=[*map(float, share[:-1]), None]) if tried else None,
        "comparisons": [
            SearchComparison(
                family="place",
                target=target,
                margin_before=34.2,
                success_before=0.994,
                margin_after=after,
                success_after=0.031 if worked else 0.97,
                others_after=2.4,
                old_success_after=0.047 if worked else 0.883,
            ),
            SearchComparison(
                family="add",
                target=target,
                margin_before=12.3,
                success_before=0.81,
                margin_after=1.1,
                success_after=0.0004,
                others_after=3.0,
            ),
        ]
        if tried
        else [],
        "changes": [
            LayerChange(
                name=f"layer{stage}.{block}.conv{conv}.weight",
                relative_change=0.31 / (stage + conv),
                parameters=9 * 64 * 64 * stage,
            )
            for stage in range(1, 5)
            for block in range(2)
            for conv in (1, 2)
        ]
        if tried
        else [],
        "steps": ["Solved 17 layers in closed form (λ 4, γ 0.01).", "Tuned for 40 steps.", "Searched again."]
        if tried
        else [],
        "loss_step0": 0.0003 if tried else None,
        "output": {"accepted": "clean/model", "unchanged": "clean/model"}.get(outcome),
        "output_sha256": hashlib.sha256(b"out").hexdigest() if outcome in ("accepted", "unchanged") else None,
    }
    return SanitizeReport(**{**filled, **changes})


def signs(count: int) -> list[str]:
    """Class names of traffic signs."""
    real = [
        "Speed limit 20",
        "Speed limit 30",
        "No passing for vehicles over 3.5 metric tons",
        "Yield",
        "Stop",
    ]
    return [f"{real[index % 5]} {index}" if index != 14 else "Stop" for index in range(count)]


def hostile() -> SanitizeReport:
    """A checkpoint whose every string attacks its reader."""
    bad = HOSTILE[0] + HOSTILE[1] + "\x1b]0;title\x07"
    base = backdoored(classes=len(HOSTILE), target=1, names=list(HOSTILE))
    facts = replace(base.model, path=f"dir/{bad}", architecture=bad, format=bad, notes=[bad])
    shown = [replace(picture, caption=bad, group=bad) for picture in base.pictures]
    suspects = [
        replace(base.suspects[0], family=bad, where=bad),
        Suspect(kind="specific", source=0, target=11, family="add", score=1.0),
    ]
    signals = [
        replace(base.signals[0], name=bad, reason=bad, matrix=matrix(len(HOSTILE), {(0, 1): 9.0})),
        SignalResult(name=bad, applicable=False, reason=bad),
    ]
    base = replace(
        base,
        model=facts,
        pictures=shown,
        suspects=suspects,
        signals=signals,
        explanation=bad,
        device=bad,
        limits=[bad],
        reproduce=bad,
        inspection_layer=bad,
        versions={bad: bad},
        config={bad: [bad]},
        seconds={bad: 1.0, "total": 1.0},
    )
    report = sanitized(base)
    return replace(
        report,
        reason=bad,
        method=bad,
        steps=[bad],
        output=bad,
        output_sha256=bad,
        changes=[LayerChange(name=bad, relative_change=0.1, parameters=3)],
        comparisons=[replace(report.comparisons[0], family=bad)],
    )


def kinds() -> dict[str, ScanReport]:
    """One report of each kind, by name."""
    thousand = [
        f"synset {index:04d}, a thing with a rather long name, and its synonym" for index in range(1000)
    ]
    big = backdoored(classes=1000, target=617, names=thousand)
    big = replace(
        big,
        signals=[
            *big.signals,
            signal("places by source", 1000, peak=3, matrix=matrix(100, {(4, 17): 9.0, (50, 17): 8.0})),
        ],
    )
    names = signs(43)
    stop = backdoored(classes=43, target=14, names=names)
    stop = replace(
        stop,
        signals=[
            *stop.signals,
            signal(
                "places by source",
                43,
                matrix=matrix(43, {(row, 14): 20.0 - row / 4 for row in range(43) if row != 14}),
            ),
        ],
    )
    return {
        "clean": scan(names=CIFAR),
        "backdoored": backdoored(names=CIFAR),
        "specific": specific(),
        "all2all": all2all(),
        "accepted": sanitized(stop),
        "rolled_back": sanitized(stop, "rolled_back"),
        "unchanged": sanitized(scan(names=CIFAR), "unchanged"),
        "unsupported": sanitized(backdoored(), "unsupported"),
        "inconclusive": scan(
            verdict="inconclusive", score=4.1, explanation="The searches disagree.", signals=[]
        ),
        "thousand": sanitized(big),
        "hostile": hostile(),
    }
