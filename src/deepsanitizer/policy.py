"""What to do about a verdict: which leads to follow, in which order, how long. One setting for all models."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from deepsanitizer.calibration import FOLLOWING, PERMUTATIONS
from deepsanitizer.errors import CannotJudgeError
from deepsanitizer.repair.bank import Lead, lead_of
from deepsanitizer.signals import permutation_window, windows_for
from deepsanitizer.types import Effort, SignalResult, Suspect


@dataclass(frozen=True, slots=True)
class Plan:
    """How much work an effort allows: dummies of the scan and of the repair, fresh ones for verification, rounds of
    tuning, quick searches throughout (after a screen on its dummies alone), full evidence whatever a screen shows, and
    a new scan of what was repaired.
    """

    dummies: int
    ordinary: int
    fresh: int
    rounds: int
    quick: bool = False
    full: bool = False
    second_look: bool = True


EFFORTS: dict[Effort, Plan] = {
    "fast": Plan(dummies=700, ordinary=280, fresh=200, rounds=1, quick=True, second_look=False),
    "standard": Plan(dummies=1000, ordinary=800, fresh=400, rounds=3),
    "thorough": Plan(dummies=3000, ordinary=2000, fresh=1000, rounds=6, full=True),
}


GROUPS = {"add": "field", "blend": "field", "grating": "field", "filter": "colour", "warp": "warp", "patch": "local",
          "place": "local", "quantise": "levels", "square": "local", "tone": "colour"}
LAST_RESORT = "quantise"  # unlearned in place of what leads where that repair fails (`ground.Ground.instead`)


def leads_for(suspects: Sequence[Suspect], results: Sequence[SignalResult], shape: tuple[int, int, int], *,
              movable: bool = True, share: float = 0.4, limit_share: float = 0.5, most: int = 4,
              others: int = 2) -> tuple[list[Lead], list[Lead]]:
    """The leads that fill the bank, and further ones that must fall with them; suspects strongest first.

    The bank takes one group of families (full-image patterns, colours, levels, warps, or local patterns): that of the
    strongest signal for the first suspect's goal. A full-image trigger is half reached by patches, a
    patch by full-image patterns; unlearning the substitute costs accuracy and leaves the trigger. A signal counts that
    has at least `share` of the best score and whose margin other classes do not reach to more than `limit_share`. Up to
    `others` further leads, of other groups or for other suspects, are checked when a repair is proven; what still
    works there joins the bank. Within the group only the purest fill it: a lead that other classes reach to a much
    larger share of its margin would bring natural patterns (docs/research/log.md, 16). Where no signal accuses the goal
    (a user named it), the one that says most about it is followed. Where dummies are not `movable`, any warp leads to
    the class that the network gives what it does not know, and what else accuses the goal is followed first.
    """
    strides = dict(windows_for(shape))
    first: list[Lead] = []
    further: list[Lead] = []
    best: SignalResult | None = None
    for suspect in suspects:
        key = (suspect.kind, suspect.source, suspect.target)
        mine = [r for r in searched(results) if _usable(r) and (r.kind, r.source, r.target) == key]
        mine.sort(key=lambda r: -(r.score or 0))
        # A search by place finds more of a patch than one plain square.
        mine = [r for r in mine if r.family != "square" or not any(other.family == "place" for other in mine)]
        if not movable:
            mine = [r for r in mine if r.family != "warp"] or mine
        if not mine and best is None:
            mine = [_named(suspect.target, results) if suspect.target is not None else _permuting(results)]
        groups: set[str] = set()
        for result in mine:
            best = best or result
            stride = permutation_window(shape)[1] if result.kind == "all2all" else strides.get(result.window, 1)
            group, lead = GROUPS[result.family], lead_of(result, stride)
            weak = result.family != LAST_RESORT and (result.score or 0) < share * (best.score or 0)
            natural = lead.natural_share > limit_share
            if result is best:
                first.append(lead)
                if result.name in FOLLOWING and result.kind == "specific":
                    # The search by route has small windows, which hold a part of a larger trigger.
                    first += [replace(lead, window=window, stride=step) for window, step in windows_for(shape)[1:2]]
            elif weak or natural:
                continue
            elif suspect is suspects[0] and group == GROUPS[best.family]:
                first.append(lead)
            elif (result.score or 0) >= 1 and group not in groups:
                further.append(lead)
                groups.add(group)
    further.sort(key=lambda lead: lead.family != LAST_RESORT)
    return _purest(first)[:most], further[:others]


def _purest(leads: Sequence[Lead], *, times: float = 2.0, slack: float = 0.05, pure: float = 0.2) -> list[Lead]:
    """The leads whose natural share is at most `pure`, or `times` the least share plus `slack`; order kept."""
    least = min(lead.natural_share for lead in leads)
    return [lead for lead in leads if lead.natural_share <= max(pure, times * least + slack)]


def searched(results: Sequence[SignalResult]) -> list[SignalResult]:
    """Those of the full evidence, on whose scale a remedy depends, and those that follow a screen, where they accuse;
    those of the screen where there is nothing else. Goals of their own are told once: by the search for permutations
    where it accuses, or the same patches would fill the bank twice.
    """
    full = [result for result in results if result.stage == "full"]
    chosen = full + [result for result in results if result.name in FOLLOWING] if full else results
    chosen = [result for result in chosen if result.name not in FOLLOWING or (result.score or 0.0) >= 1]
    permuting = max((result for result in chosen if result.name in PERMUTATIONS), key=lambda r: r.score or 0.0,
                    default=None)
    return [result for result in chosen if permuting is None or result.kind != "all2all" or result is permuting]


def suspect_for(target: int, results: Sequence[SignalResult]) -> Suspect:
    """The accusation to follow when a user names the target: the strongest signal that accuses it, or else the one
    in which its margin is furthest above the median class.
    """
    accusing = [r for r in searched(results) if _usable(r) and r.target == target]
    best = max(accusing, key=lambda r: r.score or 0.0) if accusing else _named(target, results)
    return Suspect(kind=best.kind, source=best.source, target=target, family=best.family, score=best.score or 0.0)


def _usable(result: SignalResult) -> bool:
    return result.applicable and bool(result.family) and result.margin is not None


def _named(target: int, results: Sequence[SignalResult]) -> SignalResult:
    """The all-to-one signal that says most about a class, told for that class."""
    def lead(result: SignalResult) -> float:
        known = sorted(value for value in result.per_target if value is not None)
        value = result.per_target[target]
        return float("-inf") if value is None else value - known[len(known) // 2]

    best = max((r for r in searched(results) if _usable(r) and r.kind == "all2one"), key=lead)
    margin = best.per_target[target]
    others = [v for k, v in enumerate(best.per_target) if k != target and v is not None]
    return replace(best, target=target, margin=margin, runner_up=max(others, default=0.0), score=0.0)


def _permuting(results: Sequence[SignalResult]) -> SignalResult:
    """The signal that says most about goals of their own, of full evidence or of a screen."""
    mine = [r for r in results if _usable(r) and r.kind == "all2all"]
    if not mine:
        raise CannotJudgeError("no search found goals of their own to unlearn", "Name a class with --target.")
    return max(mine, key=lambda r: (r.stage == "full", r.score or 0.0))
