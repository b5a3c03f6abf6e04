"""Cut a network at an inspection layer: images -> features -> logits, without asking anything of the network.

A layer is a valid cut where head(extractor(x)) is the model, and nothing else that is computed before the
layer reaches the logits. Both are tested, not assumed, on procedural images: the logits must agree to float
noise for two batch sizes and two fillings of the placeholders that stand for what the head does not compute,
and no placeholder may be in the autograd graph of the head's logits.

Limits: the first dimension of the features must count the images, and a layer called more than once in a
forward pass is no cut.
"""

import difflib
import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from deepsanitizer.classifier import Classifier
from deepsanitizer.errors import CannotJudgeError, UsageError
from deepsanitizer.split import surgery
from deepsanitizer.split.surgery import Node, TensorFunction

__all__ = ["LayerInfo", "Split", "list_layers", "split"]


@dataclass(frozen=True, slots=True)
class Split:
    """A classifier in two parts. They share the network's tensors, so they follow changes made in place."""

    classifier: Classifier
    layer: str  # as in network.named_modules()
    extractor: TensorFunction  # images (N, C, H, W) in [0, 1] -> features (N, *feature_shape), float32
    head: TensorFunction  # features -> logits (N, K), float32; differentiable, as the extractor is
    feature_shape: tuple[int, ...]
    share_before: float  # of the multiply-adds, the extractor's
    nonnegative: bool  # no feature of any procedural image is below zero, as behind a ReLU
    head_parameters: tuple[str, ...]  # of network.named_parameters(): those that the head's logits depend on


@dataclass(frozen=True, slots=True)
class LayerInfo:
    """One layer as a place to cut. Shares are 0 to 1.

    A parameter counts as after the cut where the head's logits depend on it (for a refused layer: where the
    module that holds it is first called after the layer), else as before.
    """

    name: str
    feature_shape: tuple[int, ...]  # of one image; () where the output is not one tensor for each image
    valid: bool
    reason: str  # why it is not valid; "" where it is
    params_before: float
    params_after: float
    madds_before: float
    madds_after: float


@dataclass(frozen=True, slots=True)
class _Finding:
    reason: str  # "" for a valid cut
    head_parameters: tuple[str, ...] = ()


class _Examiner:
    """Traces a network once and then examines any of its layers as a cut."""

    def __init__(self, classifier: Classifier) -> None:
        self.classifier = classifier
        self.images = _procedural_images(3, classifier.spec.shape)
        self.body = surgery.puppet(classifier.network)
        self.nodes = surgery.trace(classifier, self.body, self.images)
        # Parameters of their own, on the same memory, can be told apart in a graph and need no requires_grad
        # on the network's.
        self.own = {name: torch.nn.Parameter(p.detach())
                    for name, p in classifier.network.named_parameters() if p.is_floating_point()}
        self.tracked = surgery.puppet(classifier.network, {
            id(p): self.own[name] for name, p in classifier.network.named_parameters() if name in self.own})
        with classifier.exact(), torch.no_grad():
            self.expected = {n: classifier(self.images[:n]) for n in (2, 3)}

    def layers(self) -> list[Node]:
        """All that was called, in order of completion, without the network as a whole."""
        return [node for node in self.nodes.values() if node.name]

    def examine(self, cut: Node) -> _Finding:
        """Whether the network can be cut at a layer, else why not."""
        if cut.calls > 1:
            return _Finding(f"it is called {cut.calls} times in one forward pass")
        if cut.fault:
            return _Finding(cut.fault)
        if not cut.dtype.is_floating_point:
            return _Finding(f"its output is {cut.dtype}, which has no gradient")
        try:
            with self.classifier.exact():
                return self._try(cut)
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the network's own code runs here on placeholders: it may raise anything
            said = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"
            return _Finding(f"the network does not run from its output alone ({said})")

    def _try(self, cut: Node) -> _Finding:
        generator = torch.Generator().manual_seed(1)
        leaves: list[tuple[str, Tensor]] = []

        def noise(node: Node, size: int, device: torch.device) -> Tensor:
            blank = surgery.zeros(node, size, torch.device("cpu"))
            if not node.dtype.is_floating_point:
                return blank.to(device)
            leaves.append((node.name, blank.uniform_(-1, 1, generator=generator).to(device).requires_grad_()))
            return leaves[-1][1].clone()

        # First what the logits are connected with, from noise alone: most refusals are cheap this way.
        probe = surgery.head(self.classifier, self.tracked, self.nodes, cut, fill=noise)
        with torch.enable_grad():
            logits = probe(noise(cut, 2, self.classifier.compute.device))
        reached = _leaves(logits)
        (_, features), *others = leaves
        around = list(dict.fromkeys(name for name, leaf in others if id(leaf) in reached))
        if id(features) not in reached:
            return _Finding("no gradient flows from its output to the logits")
        if around:
            return _Finding(f"a connection goes around it: the logits also depend on {_listed(around)}")
        extract = surgery.extractor(self.classifier, self.body, cut)
        with torch.no_grad():
            for count, fill in ((2, noise), (3, surgery.zeros)):
                head = surgery.head(self.classifier, self.body, self.nodes, cut, fill=fill)
                if not _agree(head(extract(self.images[:count])), self.expected[count]):
                    return _Finding("something computed before it reaches the logits around it")
        return _Finding("", tuple(name for name, parameter in self.own.items() if id(parameter) in reached))

    def choose(self) -> Iterator[Node]:
        """Layers in the order in which `auto` tries them."""
        able = [node for node in self.layers() if node.share > 0]
        groups = [list(group) for _, group in itertools.groupby(able, key=lambda node: node.share)]
        for group in sorted(groups, key=lambda group: round(abs(group[0].share - 0.5), 9)):
            yield from sorted(group, key=lambda node: (node.name.count("."), -node.end))


def split(classifier: Classifier, layer: str = "auto") -> Split:
    """Cut a classifier at a layer, named as in network.named_modules(); the classifier is left as it is.

    `auto` is this rule: among the valid cuts that have multiply-adds before them and parameters after them,
    take the one whose extractor has the share of multiply-adds nearest to one half; of two equally near, the
    earlier. Where several have the same share (a convolution, its normalisation, its activation, the block
    that ends with them), take the outermost in the tree of modules, and of those the last.

    Raises UsageError for a layer that does not exist; CannotJudgeError for one where the network cannot be
    cut, and where `auto` finds none.
    """
    examiner = _Examiner(classifier)
    if layer == "auto":
        tries = ((node, examiner.examine(node)) for node in examiner.choose())
        found = next((pair for pair in tries if not pair[1].reason and pair[1].head_parameters), None)
        if found is None:
            raise CannotJudgeError("no layer cuts this network into two parts that both compute something",
                                   "Every layer is crossed by a connection, or comes first or last: "
                                   "see `deepsanitizer layers`.")
        cut, finding = found
    else:
        cut = _named(examiner, layer)
        finding = examiner.examine(cut)
        if finding.reason:
            raise CannotJudgeError(f"layer {layer!r} is no valid cut: {finding.reason}",
                                   "Choose a layer that `deepsanitizer layers` lists, or auto.")
    extract = surgery.extractor(classifier, examiner.body, cut)
    head = surgery.head(classifier, examiner.body, examiner.nodes, cut)
    with classifier.exact(), torch.no_grad():
        nonnegative = bool((extract(_procedural_images(24, classifier.spec.shape)) >= 0).all())
    return Split(classifier, cut.name, extract, head, cut.shape, cut.share, nonnegative,
                 finding.head_parameters)


def list_layers(classifier: Classifier, *, all: bool = False) -> list[LayerInfo]:
    """The layers where the network can be cut, in the order in which their outputs are complete.

    With `all` also those where it cannot, with the reason; modules that are never called come last.
    """
    examiner = _Examiner(classifier)
    sizes = {name: p.numel() for name, p in classifier.network.named_parameters()}
    total = max(sum(sizes.values()), 1)
    begins = {name: _begin(name, examiner.nodes) for name in sizes}
    infos = []
    for node in examiner.layers():
        finding = examiner.examine(node)
        after = (finding.head_parameters if not finding.reason
                 else [name for name, begin in begins.items() if begin > node.end])
        share = sum(sizes[name] for name in after) / total
        infos.append(LayerInfo(node.name, node.shape, not finding.reason, finding.reason, 1 - share, share,
                               node.share, 1 - node.share))
    infos += [LayerInfo(name, (), False, _NEVER, 0.0, 0.0, 0.0, 0.0)
              for name, _ in classifier.network.named_modules() if name not in examiner.nodes]
    return [info for info in infos if info.valid or all]


_NEVER = "it is never called in a forward pass"


def _named(examiner: _Examiner, layer: str) -> Node:
    """The node of a layer that the user asked for."""
    names = [name for name, _ in examiner.classifier.network.named_modules() if name]
    if layer not in names:
        near = difflib.get_close_matches(layer, names, n=3, cutoff=0.5)
        offer = f"Did you mean {' or '.join(map(repr, near))}?" if near else "See `deepsanitizer layers`."
        raise UsageError(f"there is no layer {layer!r}", offer)
    if layer not in examiner.nodes:
        raise CannotJudgeError(f"layer {layer!r} is no valid cut: {_NEVER}",
                               "Choose a layer that `deepsanitizer layers` lists, or auto.")
    return examiner.nodes[layer]


def _begin(parameter: str, nodes: Mapping[str, Node]) -> int:
    """When the module that holds a parameter, or the nearest called module around it, is first called."""
    name = parameter
    while name:
        name = name.rpartition(".")[0]
        if name in nodes:
            return nodes[name].start
    return 0


def _procedural_images(count: int, shape: tuple[int, int, int]) -> Tensor:
    """Noise, smooth fields and hard-edged shapes in turn, (count, C, H, W) in [0, 1]; always the same."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(count, *shape, generator=generator)
    coarse = torch.rand(count, shape[0], 4, 4, generator=generator)
    smooth = F.interpolate(coarse, shape[1:], mode="bilinear", align_corners=False)
    kinds = (noise, smooth, (smooth > 0.5).float())
    return torch.stack([kinds[i % 3][i] for i in range(count)])


def _agree(logits: Tensor, expected: Tensor) -> bool:
    """Equal to float noise; NaN never is."""
    scale = float(expected.abs().max().clamp(min=1e-6))
    return logits.shape == expected.shape and float((logits - expected).abs().max()) <= 1e-4 * scale


def _leaves(output: Tensor) -> set[int]:
    """The ids of the leaf tensors that an output is connected with in the autograd graph."""
    found, seen, stack = set(), set(), [output.grad_fn]
    while stack:
        node = stack.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.add(id(node.variable))
        stack.extend(following for following, _ in node.next_functions)
    return found


def _listed(names: list[str]) -> str:
    """For people: what goes around a cut, the nearest first, at most three."""
    shown = [f"the output of {name!r}" if name else "the input images" for name in reversed(names)]
    return " and ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
