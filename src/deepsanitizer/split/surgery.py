"""The mechanism behind a split: a puppet of the network, whose modules do what they are told instead.

A puppet is a copy of the modules on the same tensors. The caller's modules stay untouched, and changes of the
weights (in place) are seen. `trace` has every module report what it does; `extractor` has the layer stop the
pass with its output; `head` has the layer answer with given features, and every module that is through before
the layer begins answer with a cheap placeholder.
"""

import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from deepsanitizer.classifier import Classifier, pick_logits

TensorFunction = Callable[[Tensor], Tensor]
Act = Callable[[Callable[[], Any]], Any]  # what a module does instead of its own forward, which it is given
Puppet = Callable[[Tensor, Mapping[str, Act]], Any]  # the network on an input, with acts by module name


@dataclass(frozen=True, slots=True)
class Node:
    """What one module did in a forward pass. Times count starts and ends of calls."""

    name: str
    start: int  # of its first call
    end: int  # of its last call
    shape: tuple[int, ...]  # of one image's output; () where `fault` is set
    order: tuple[int, ...]  # dimensions of the output from the outermost in memory to the innermost
    dtype: torch.dtype
    share: float  # of the multiply-adds, of all that ran until its end
    calls: int
    fault: str  # why its output cannot be given or replaced; "" where it can


Fill = Callable[[Node, int, torch.device], Tensor]  # a stand-in for a node's output for that many images


class _Stop(BaseException):
    """Carries the features out of a forward pass; no `except Exception` of the network's holds it up."""

    def __init__(self, features: Tensor) -> None:
        super().__init__()
        self.features = features


def puppet(network: nn.Module, swap: Mapping[int, Tensor] | None = None) -> Puppet:
    """A copy in eval mode of a network's modules, on the same tensors; `swap` gives others, by id."""
    swap = swap or {}
    memo: dict[int, Any] = {}
    for module in network.modules():
        tensors = [*module._parameters.values(), *module._buffers.values(), *vars(module).values()]
        memo.update((id(t), swap.get(id(t), t)) for t in tensors if isinstance(t, Tensor))
    twin = copy.deepcopy(network, memo).eval()
    current: Mapping[str, Act] = {}

    def obeying(name: str, forward: Callable[..., Any]) -> Callable[..., Any]:
        def obey(*args: Any, **kwargs: Any) -> Any:
            act = current.get(name)
            return forward(*args, **kwargs) if act is None else act(lambda: forward(*args, **kwargs))

        return obey

    for name, module in twin.named_modules():
        module.forward = obeying(name, module.forward)
        if isinstance(module, nn.TransformerEncoderLayer):  # with a hook it calls its children, unfused
            module.register_forward_pre_hook(lambda module, inputs: None)

    def run(x: Tensor, acts: Mapping[str, Act]) -> Any:
        nonlocal current
        before, current = current, acts
        try:
            return twin(x)
        finally:
            current = before

    return run


@dataclass(frozen=True, slots=True)
class _Call:
    start: int
    end: int
    output: Tensor | str  # on the meta device, strides kept; else the name of its type
    flops: int


def _record(classifier: Classifier, body: Puppet, images: Tensor) -> tuple[dict[str, list[_Call]], int]:
    """Every module's calls by name, and the multiply-adds of the whole pass."""
    clock, calls = itertools.count(), dict[str, list[_Call]]()
    counter = FlopCounterMode(display=False)

    def watching(name: str) -> Act:
        def watch(forward: Callable[[], Any]) -> Any:
            start, output = next(clock), forward()
            seen = output.detach().to("meta") if isinstance(output, Tensor) else type(output).__name__
            calls.setdefault(name, []).append(_Call(start, next(clock), seen, counter.get_total_flops()))
            return output

        return watch

    acts = {name: watching(name) for name, _ in classifier.network.named_modules()}
    # The counter knows the products inside attention only where they are written out.
    with torch.no_grad(), classifier.autocast(), sdpa_kernel(SDPBackend.MATH), counter:
        body(classifier.normalise(images), acts)
    return calls, counter.get_total_flops()


def trace(classifier: Classifier, body: Puppet, images: Tensor) -> dict[str, Node]:
    """What each module of the network does, in the order in which their outputs are complete.

    All of the images (N, C, H, W) are passed, and all but one, to see which dimension counts them: N is at
    least 3. The network itself has the name "" here, as in named_modules.
    """
    with classifier.exact():
        calls, flops = _record(classifier, body, images)
        fewer, _ = _record(classifier, body, images[:-1])
    nodes = []
    for name, made in calls.items():
        last = made[-1].output
        outputs = [(len(images), call.output) for call in made]
        outputs += [(len(images) - 1, call.output) for call in fewer.get(name, [])]
        fault, dtype = "", torch.float32
        shape: tuple[int, ...] = ()
        order: tuple[int, ...] = ()
        if not isinstance(last, Tensor):
            fault = f"its output is a {last}, not one tensor"
        elif not all(_fits(output, size, last) for size, output in outputs):
            fault = f"the first dimension of its output {tuple(last.shape)} does not count the images"
        else:
            shape, order, dtype = tuple(last.shape[1:]), _memory_order(last), last.dtype
        nodes.append(Node(name, made[0].start, made[-1].end, shape, order, dtype,
                          made[-1].flops / max(flops, 1), len(made), fault))
    return {node.name: node for node in sorted(nodes, key=lambda node: node.end)}


def _fits(output: Tensor | str, size: int, other: Tensor) -> bool:
    """Whether an output is a tensor for that many images, for each of them like the other one."""
    return (isinstance(output, Tensor) and output.ndim > 1 and output.shape[0] == size
            and output.shape[1:] == other.shape[1:] and output.dtype == other.dtype)


def _memory_order(tensor: Tensor) -> tuple[int, ...]:
    """Dimensions from the outermost in memory to the innermost."""
    strides = tensor.stride()
    return tuple(sorted(range(tensor.ndim), key=lambda axis: -strides[axis]))


def _inverse(order: tuple[int, ...]) -> list[int]:
    return [order.index(axis) for axis in range(len(order))]


def zeros(node: Node, size: int, device: torch.device) -> Tensor:
    """A placeholder of zeros, laid out in memory as the node's own output."""
    full = (size, *node.shape)
    blank = torch.zeros([full[axis] for axis in node.order], dtype=node.dtype, device=device)
    return blank.permute(_inverse(node.order))


def extractor(classifier: Classifier, body: Puppet, cut: Node) -> TensorFunction:
    """images (N, C, H, W) in [0, 1] -> features (N, *cut.shape), float32: the network up to the cut."""

    def stop(forward: Callable[[], Any]) -> Any:
        raise _Stop(forward())

    def extract(images: Tensor) -> Tensor:
        assert images.shape[1:] == classifier.spec.shape, images.shape
        try:
            with classifier.autocast():
                body(classifier.normalise(images), {cut.name: stop})
        except _Stop as stopped:
            return stopped.features.float()
        raise AssertionError(f"{cut.name} was not called")

    return extract


def head(classifier: Classifier, body: Puppet, nodes: Mapping[str, Node], cut: Node, *,
         fill: Fill = zeros) -> TensorFunction:
    """features (N, *cut.shape) -> logits (N, K), float32: the network from the cut's output on.

    `fill` makes the placeholders for what the head does not compute, the network's input among them.
    """
    through = [node for node in nodes.values() if not node.fault and node.end < cut.start]
    source = Node("", -1, -1, classifier.spec.shape, (0, 2, 3, 1), torch.float32, 0.0, 1, "")

    def run(features: Tensor) -> Tensor:
        assert features.shape[1:] == cut.shape, (features.shape, cut.shape)
        size, device = len(features), classifier.compute.device
        # A clone, since the network may work in place; in the layer's memory order, since it may take views.
        laid = features.to(device).permute(cut.order).clone(memory_format=torch.contiguous_format)
        given = laid.permute(_inverse(cut.order))
        acts: dict[str, Act] = {node.name: lambda _, node=node: fill(node, size, device)  # type: ignore[misc]
                                for node in through}
        acts[cut.name] = lambda _: given
        with classifier.autocast():
            logits = pick_logits(body(fill(source, size, device), acts))
        return logits.float()

    return run
