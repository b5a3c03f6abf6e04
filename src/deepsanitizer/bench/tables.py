"""Tables of benchmark rows, and the data-free proxies beside the truth.

    python -m deepsanitizer.bench.tables

Reads benchmarks/results/zoo, writes benchmarks/results/zoo.md and docs/images/proxies.svg, and prints the figures of
both. The RA share is RA after / (accuracy before * the share that a clean network keeps under the same trigger); the
last factor is in the zoo's ra_reference.json, and the share is left out where that file is not at hand.
"""

import json
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from deepsanitizer.bench.datasets import shared_folder
from deepsanitizer.bench.proxies import Row, drawn, points_of
from deepsanitizer.report import write

Reference = dict[str, dict[str, float]]


def load_results(results: Path) -> list[Row]:
    """All rows in a folder of results."""
    return [json.loads(path.read_text()) for path in sorted(results.glob("*.json"))]


def ra_reference(zoo: Path) -> Reference:
    """By data set and trigger: the share of its accuracy that a clean network keeps under the trigger."""
    path = zoo / "ra_reference.json"
    reference: Reference = json.loads(path.read_text()) if path.exists() else {}
    return reference


def table(rows: Sequence[Row], reference: Reference) -> str:
    """A Markdown table of results, and the means of each method."""
    lines = ["| model | trigger | method | verdict: suspect | outcome | before | candidate | delivered | RA share | "
             "seconds | passes | label |", "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"]
    for row in sorted(rows, key=lambda r: (r["method"], r["seed"], r["model"])):
        truth = row["truth"]
        told = "–" if not truth["trigger"] else f"{truth['trigger']}, {truth['mode']}, {_goal(truth)}"
        name = row["method"] + (", forced" if row["force"] else "") + (f", seed {row['seed']}" if row["seed"] else "")
        if "error" in row:
            lines.append(f"| {row['model']} | {told} | {name} | {row['error']} | | {_triple(row['before'])} "
                         f"| | | | | | {row['label']} |")
            continue
        suspect = row["suspects"][0] if row["suspects"] else None
        said = row["verdict"]
        if suspect is not None:
            said += f": {suspect['family']}, {suspect['kind']}, {_goal(suspect)}"
        share = ra_share(row, "delivered", reference)
        lines.append(
            f"| {row['model']} | {told} | {name} | {said} ({row['score']:.1f}) | {row['outcome']} | "
            f"{_triple(row['before'])} | {_triple(row['candidate'])} | {_triple(row['delivered'])} | "
            f"{'–' if share is None else f'{share:.0f}'} | {row['seconds']['total']:.0f} | "
            f"{row['passes']['total']:,.0f} | {row['label']} |")
    return "\n".join([*lines, "", *_means(rows, reference)]) + "\n"


def ra_share(row: Row, key: str, reference: Reference) -> float | None:
    """In percent; None for a clean model, or where no reference is known."""
    truth = row["truth"]
    kept = reference.get(truth["data"], {}).get(truth["trigger"] or "")
    if not kept:
        return None
    ra: float = (row[key] or row["before"])["ra"]
    share: float = 100 * ra / (row["before"]["acc"] * kept)
    return share


def _goal(facts: Row) -> str:
    if facts["target"] is None:
        return "→ next class" if facts.get("mode") == "all2all" else "→ own goals"
    return (f"{facts['source']} " if facts.get("source") is not None else "") + f"→ {facts['target']}"


def _triple(figures: dict[str, float] | None) -> str:
    if figures is None:
        return "–"
    return " / ".join(f"{figures[key]:.1f}" for key in ("acc", "asr", "ra") if key in figures)


def _means(rows: Sequence[Row], reference: Reference) -> Iterator[str]:
    groups = sorted({(row["method"], row["force"]) for row in rows})
    for method, force in groups:
        every = [row for row in rows if (row["method"], row["force"]) == (method, force) and "error" not in row]
        mine = [row for row in every if not row["seed"]]
        name = f"`{method}`" + (", forced" if force else "")
        trojaned = [row for row in mine if row["truth"]["trigger"]]
        clean = [row for row in mine if not row["truth"]["trigger"]]
        for key in ("candidate", "delivered"):
            if trojaned:
                yield f"- {name}, {key}, {len(trojaned)} trojaned models: {_over_trojaned(trojaned, key, reference)}"
        if trojaned:
            wrong = _wrong(trojaned)
            yield (f"- {name}, exit code 0 while the ASR is 10 or more: {len(wrong)} of {len(trojaned)}"
                   + (f" ({', '.join(wrong)})" if wrong else ""))
        if clean:
            found_clean = sum(row["verdict"] == "clean" for row in clean)
            worst = max(row["before"]["acc"] - row["delivered"]["acc"] for row in clean)
            yield (f"- {name}, {len(clean)} clean models: found clean {found_clean}; worst accuracy lost by what was "
                   f"delivered {worst:.2f}")
        yield from _over_seeds(name, every, reference)


def _over_seeds(name: str, rows: Sequence[Row], reference: Reference) -> Iterator[str]:
    """Two lines for each further seed, over the trojaned models that were read with it: that seed and the first."""
    by_seed = {seed: {row["model"]: row for row in rows if row["seed"] == seed and row["truth"]["trigger"]}
               for seed in sorted({row["seed"] for row in rows})}
    for seed in by_seed:
        panel = sorted(set(by_seed[seed]) & set(by_seed.get(0, {}))) if seed else []
        for shown in (seed, 0) if panel else ():
            found = [by_seed[shown][model] for model in panel]
            yield (f"- {name}, delivered, seed {shown}, {len(panel)} models read with seed {seed}: "
                   f"{_over_trojaned(found, 'delivered', reference)}; exit code 0 wrong for {len(_wrong(found))}")


def _wrong(rows: Sequence[Row]) -> list[str]:
    """Models with exit code 0 whose ASR is 10 or more: what was left as it was keeps the code of its verdict."""
    return [row["model"] for row in rows if row["delivered"]["asr"] >= 10 and (
        row["outcome"] == "accepted" or (row["outcome"] == "unchanged" and row["verdict"] == "clean"))]


def _over_trojaned(rows: Sequence[Row], key: str, reference: Reference) -> str:
    pairs = [(row["before"], row[key] or row["before"]) for row in rows]
    success = sum(new["asr"] < 10 and old["acc"] - new["acc"] < 3 for old, new in pairs)
    lost = _mean([old["acc"] - new["acc"] for old, new in pairs])
    asr, ra = (_mean([new[name] for _, new in pairs]) for name in ("asr", "ra"))
    shares = [share for row in rows if (share := ra_share(row, key, reference)) is not None]
    told = (f"success (ASR < 10, < 3 points lost) {success}; mean ASR {asr:.1f}; mean accuracy lost {lost:.2f}; "
            f"mean RA {ra:.1f}")
    return told + (f"; mean RA share {_mean(shares):.1f}" if shares else "")


def _mean(values: Sequence[float]) -> float:
    return sum(values) / max(1, len(values))


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's, ties sharing their mean rank; nan for fewer than three pairs or a constant."""
    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return float("nan")
    return statistics.correlation(_ranks(first), _ranks(second))


def _ranks(values: Sequence[float]) -> list[float]:
    order = sorted(values)
    return [order.index(v) + (order.count(v) - 1) / 2 for v in values]


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--zoo", type=click.Path(exists=True, file_okay=False, path_type=Path), help="For ra_reference.json. "
              "Default: the zoo in the shared folder.")
@click.option("--results", type=click.Path(exists=True, file_okay=False, path_type=Path),
              default=Path("benchmarks/results/zoo"))
@click.option("--picture", type=click.Path(path_type=Path), default=Path("docs/images/proxies.svg"))
def main(zoo: Path | None, results: Path, picture: Path) -> None:
    """See the module."""
    rows = load_results(results)
    told = table(rows, ra_reference(zoo or shared_folder() / "zoo"))
    write(told, results.with_suffix(".md"))
    click.echo(told)
    pairs = points_of(rows)
    write(drawn(pairs), picture)
    for pair in pairs:
        correlation = rank_correlation(pair.proxy, pair.truth)
        click.echo(f"{pair.told}: rank correlation {correlation:.2f} over {len(pair.proxy)} candidates")


if __name__ == "__main__":
    main()
