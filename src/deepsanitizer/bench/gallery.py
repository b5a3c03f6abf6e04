"""Pictures for the documentation: recovered triggers beside the real ones, or images drawn from nothing.

    python -m deepsanitizer.bench.gallery models/* --output docs/images/triggers.png
    python -m deepsanitizer.bench.gallery --output docs/images/natural.png

Each model folder is one that `bench.train` made. A row shows a dummy of the scan, the same with the planted trigger
and with the strongest recovered one, and what each changes, amplified. Only the drawing knows what was planted: the
scan does not. Without folders: natural images above, below them those from which dummies are curated.
"""

import io
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from deepsanitizer import examination, facts, loading
from deepsanitizer.bench.attacks import ATTACKS
from deepsanitizer.bench.zoo import code_of, truth_of
from deepsanitizer.curate import natural, procedural
from deepsanitizer.loading import atomic
from deepsanitizer.pictures import difference_picture, to_picture
from deepsanitizer.triggers import apply_trigger
from deepsanitizer.types import Picture, silent

COLUMNS = ("dummy", "with the planted trigger", "what it changes", "with the recovered one", "what it changes")
SIDE, GAP, HEAD, FOOT = 128, 14, 26, 34


@dataclass(frozen=True, slots=True)
class Shown:
    """One row: its title, and a dummy (C, H, W) plain, with the planted and with the recovered trigger."""

    title: str
    plain: Tensor
    planted: Tensor
    recovered: Tensor


def shown(folder: Path, *, seed: int = 0) -> Shown:
    """Scan one model; LookupError where the scan recovers no trigger."""
    loaded, truth = loading.load(folder, import_from=code_of(folder.parent)), truth_of(folder)
    case = examination.open_case(loaded, None, "auto", "auto", seed, "standard", silent, None)
    examined = examination.examine(case)
    triggers = facts.triggers_of(examined.verdict.suspects, examined.evidence)
    if not triggers:
        raise LookupError(f"{folder.name}: nothing was recovered, the verdict is {examined.verdict.name}")
    trigger = triggers[0]
    usable = (trigger.goals_of(examined.dummies.labels) >= 0).nonzero()[:1, 0]
    plain = examined.dummies.images[usable]
    planted = ATTACKS[truth["attack"]](**truth["attack_kwargs"]).apply(plain)
    goal = "own goals" if trigger.target is None else f"class {trigger.target}"
    meant = "the next class" if truth["target"] is None else f"class {truth['target']}"
    title = (f"{folder.name}: planted {truth['attack']} to {meant}; "
             f"recovered {trigger.family} to {goal}, score {examined.verdict.score:.1f}")
    return Shown(title, plain[0], planted[0], apply_trigger(trigger, plain)[0])


def drawn(rows: Sequence[Shown]) -> Image.Image:
    """All rows under a head of column titles."""
    width, height = len(COLUMNS) * (SIDE + GAP) + GAP, HEAD + len(rows) * (SIDE + FOOT)
    sheet = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(11)
    for number, title in enumerate(COLUMNS):
        pen.text((GAP + number * (SIDE + GAP), 7), title, "black", font)
    for number, row in enumerate(rows):
        top = HEAD + number * (SIDE + FOOT)
        pictures = [to_picture(row.plain, role="dummy", caption=""),
                    to_picture(row.planted, role="triggered", caption=""), difference_picture(row.plain, row.planted),
                    to_picture(row.recovered, role="triggered", caption=""),
                    difference_picture(row.plain, row.recovered)]
        for column, picture in enumerate(pictures):
            sheet.paste(_image(picture), (GAP + column * (SIDE + GAP), top))
        pen.text((GAP, top + SIDE + 5), row.title, "black", font)
    return sheet


def from_nothing(*, count: int = 10, side: int = 32, seed: int = 0) -> Image.Image:
    """Two rows of images of 32 pixels: with the statistics of photographs, and what curation starts from."""
    sheet = Image.new("RGB", (count * (SIDE // 2 + 4) - 4, SIDE + 4), "white")
    for row, draw in enumerate((natural, procedural)):
        for column, image in enumerate(draw(count, (3, side, side), torch.Generator().manual_seed(seed))):
            small = _image(to_picture(image, role="dummy", caption=""))
            small = small.resize((SIDE // 2, SIDE // 2), Image.Resampling.NEAREST)
            sheet.paste(small, (column * (SIDE // 2 + 4), row * (SIDE // 2 + 4)))
    return sheet


def _image(picture: Picture) -> Image.Image:
    image = Image.open(io.BytesIO(b64decode(picture.png_base64))).convert("RGB")
    return image.resize((SIDE, SIDE), Image.Resampling.NEAREST)


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.argument("folders", nargs=-1, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--output", type=click.Path(path_type=Path), required=True, help="A .png.")
@click.option("--seed", default=0)
@click.option("--threads", default=1)
def main(folders: tuple[Path, ...], output: Path, seed: int, threads: int) -> None:
    """See the module."""
    torch.set_num_threads(threads)
    if not folders:
        _write(from_nothing(), output)
        return
    rows = []
    for folder in folders:
        try:
            rows.append(shown(folder, seed=seed))
        except LookupError as error:
            click.echo(error, err=True)
            continue
        click.echo(rows[-1].title)
    if not rows:
        raise SystemExit(1)
    _write(drawn(rows), output)


def _write(sheet: Image.Image, output: Path) -> None:
    file = io.BytesIO()
    sheet.save(file, "PNG", optimize=True)
    atomic.write_file(output, file.getvalue())


if __name__ == "__main__":
    main()
