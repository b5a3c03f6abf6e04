"""deepsanitizer evaluate and layers: measuring on the user's own data, and where a model can be cut."""

import json
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from deepsanitizer.cli.console import plain, result_console
from deepsanitizer.cli.options import Common, Source, common_options, file_path, model_options
from deepsanitizer.errors import CannotJudgeError, ExitCode, UsageError, WorkError

if TYPE_CHECKING:
    from torch import Tensor

    from deepsanitizer.split import LayerInfo
    from deepsanitizer.types import Kind, Loaded, Trigger

_FORMAT = click.option("--format", "form", type=click.Choice(["text", "json"]), default="text",
                       show_default=True, help="Form of the result.")


@click.command(short_help="Accuracy and attack success on your own data.")
@click.option("--data", type=file_path(), required=True, metavar="PACK.npz",
              help="Your data: `images` uint8 (N, C, H, W) and `labels` int (N,).")
@click.option("--weights", type=file_path(), metavar="W",
              help="Measure these weights, as `sanitize` wrote them, in place of the model's own.")
@click.option("--trigger", metavar="FILE|MODULE:FUNCTION",
              help="What `scan --export-trigger` wrote, or a function of float images (N, C, H, W) in [0, 1] "
                   "in --import-from.")
@click.option("--target", type=click.IntRange(min=0), metavar="N",
              help="The class that the trigger leads to.  [default: as the trigger file says]")
@click.option("--source", "source_class", type=click.IntRange(min=0), metavar="N",
              help="With --mode specific: the class of the triggered images.")
@click.option("--mode", type=click.Choice(["all2one", "specific", "all2all"]),
              help="Whom the trigger sends where.  [default: as the trigger file says, else all2one]")
@_FORMAT
@model_options
@common_options(unused=("layer", "seed", "timeout"))
def evaluate(common: Common, source: Source, data: Path, weights: Path | None, trigger: str | None,
             target: int | None, source_class: int | None, mode: "Kind | None", form: str) -> int:
    """Measure the model at PATH on your own data: accuracy, and with a trigger its success.

    Prints, in percent: ACC, images classified right; ASR, triggered images sent where the trigger leads;
    RA, triggered images still classified right.
    """
    if trigger is None and (target is not None or source_class is not None or mode is not None):
        raise UsageError("--target, --source and --mode describe a trigger", "Give it with --trigger.")
    from deepsanitizer.evaluation import evaluate as measure
    from deepsanitizer.evaluation import load_data

    images, labels = load_data(data)
    function: Callable[[Tensor], Tensor] | None = None
    goals: tuple[int, ...] | None = None
    if trigger is not None:
        function, found = _trigger(trigger, source.import_from)
        if found is not None:
            target = found.target if target is None else target
            source_class = found.source if source_class is None else source_class
            goals = found.goals
            mode = mode or ("all2all" if found.goals is not None
                            else "specific" if found.source is not None else "all2one")
    loaded = source.load(common)
    if weights is not None:
        loaded = _with_weights(loaded, weights)
    result = measure(loaded, images, labels, trigger=function, target=target, source=source_class,
                     mode=mode or "all2one", goals=goals, device=common.device)
    if form == "json":
        click.echo(json.dumps(asdict(result)))
        return ExitCode.CLEAN
    click.echo(f"ACC {result.acc:6.2f} %  of {result.images} images classified right")
    if result.asr is not None and result.ra is not None:
        goal = f"class {target}"
        if mode == "all2all":
            goal = "the next class" if goals is None else "the goal of their class, as the trigger file says"
        click.echo(f"ASR {result.asr:6.2f} %  of {result.triggered} triggered images sent to {goal}")
        click.echo(f"RA  {result.ra:6.2f} %  of {result.triggered} triggered images still classified right")
    return ExitCode.CLEAN


@click.command(short_help="Where a model can be cut for inspection.")
@click.option("--all", "show_all", is_flag=True,
              help="Also the layers that are no valid cut, with the reason.")
@_FORMAT
@model_options
@common_options(unused=("seed", "timeout"))
def layers(common: Common, source: Source, show_all: bool, form: str) -> int:
    """List the layers of the model at PATH that can be the inspection layer, in the order they run.

    For each: the shape of its features, and the share of the parameters and of the multiply-adds before and
    after it. `auto` marks the one that is used when none is named. With --layer NAME only that one.
    """
    from deepsanitizer.classifier import classifier_of, resolve_compute
    from deepsanitizer.split import list_layers, split

    loaded = source.load(common)
    classifier = classifier_of(loaded.network, loaded.spec, resolve_compute(common.device))
    found = list_layers(classifier, all=show_all)
    if any(layer.valid for layer in found) or common.layer != "auto":
        chosen = split(classifier, common.layer).layer
    else:
        chosen = None  # with --all the reasons are shown even where there is no cut at all
    if common.layer != "auto":
        found = [layer for layer in found if layer.name == chosen]
    if form == "json":
        click.echo(json.dumps([asdict(layer) | {"auto": layer.name == chosen} for layer in found], indent=2))
    else:
        _show_layers(found, chosen)
    return ExitCode.CLEAN if chosen is not None else ExitCode.NO_VERDICT


def _show_layers(found: "list[LayerInfo]", chosen: str | None) -> None:
    """The valid cuts as a table, then the others with the reason."""
    from rich.table import Table
    from rich.text import Text

    console = result_console()
    table = Table(box=None, pad_edge=False)
    for heading in ("layer", "features", "parameters", "multiply-adds", ""):
        table.add_column(heading, overflow="fold")
    for layer in found:
        if layer.valid:
            table.add_row(Text(plain(layer.name)), "x".join(map(str, layer.feature_shape)),
                          f"{layer.params_before:.1%} | {layer.params_after:.1%}",
                          f"{layer.madds_before:.1%} | {layer.madds_after:.1%}",
                          "auto" if layer.name == chosen else "")
    console.print(table if table.row_count else "No layer is a valid cut.")
    refused = [layer for layer in found if not layer.valid]
    if refused:
        console.print("\nNo valid cut:")
    for layer in refused:
        console.print(Text(plain(f"{layer.name}: {layer.reason}")), soft_wrap=True)


def _trigger(text: str, import_from: Path | None) -> "tuple[Callable[[Tensor], Tensor], Trigger | None]":
    """The function that puts a trigger on images, and the file's facts where it is a file."""
    from deepsanitizer.loading import import_callable
    from deepsanitizer.triggers import apply_trigger, load_trigger

    if Path(text).exists() or ":" not in text:
        trigger = load_trigger(text)
        return (lambda images: apply_trigger(trigger, images)), trigger
    return import_callable(text, import_from), None


def _with_weights(loaded: "Loaded", weights: Path) -> "Loaded":
    """The same network with the weights that `sanitize` wrote for it."""
    import copy

    from deepsanitizer.loading import read_back

    assert loaded.checkpoint is not None
    network = copy.deepcopy(loaded.network)
    try:
        # not strict: batch-norm counters and shared tensors need not be in a file; the rest is known to be
        network.load_state_dict(read_back(loaded.checkpoint, weights), strict=False)
    except (WorkError, RuntimeError) as error:
        raise CannotJudgeError(f"the weights {weights} do not fit the model: {plain(str(error))[:300]}",
                               "Give what `sanitize` wrote for this model.") from error
    return replace(loaded, network=network)
