"""The linear maps of a network as matrices over rows of inputs: convolutions, linear layers, attention projections.

A projection's input rows (R, groups, in) and responses (R, groups, out) can be recorded at chosen positions, and
its weight read and written as (groups, out, in [+ 1 for the bias]).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Projection:
    """One linear map: its name, the module whose call applies it, and where its weight and bias live."""

    name: str
    module: nn.Module
    weight: Tensor
    bias: Tensor | None

    @property
    def groups(self) -> int:
        """Independent blocks: more than 1 for grouped and depthwise convolutions."""
        return self.module.groups if isinstance(self.module, nn.Conv2d) else 1

    def matrix(self) -> Tensor:
        """(groups, out, in [+ 1]), a copy."""
        weight = self.weight.detach().reshape(self.groups, -1, self.weight[0].numel())
        if self.bias is None:
            return weight.clone()
        return torch.cat([weight, self.bias.detach().view(self.groups, -1, 1)], 2)

    def write(self, matrix: Tensor) -> None:
        """Put a matrix back into the parameters, in place."""
        with torch.no_grad():
            inputs = self.weight[0].numel()
            self.weight.copy_(matrix[:, :, :inputs].reshape(self.weight.shape))
            if self.bias is not None:
                self.bias.copy_(matrix[:, :, inputs].reshape(-1))

    def positions(self, output: Tensor, per_image: int, generator: torch.Generator) -> Tensor:
        """Random flat output positions (N, per_image) of each image (all of them if there are no more)."""
        spatial = output[0, 0].numel() if isinstance(self.module, nn.Conv2d) else output[0, ..., 0].numel()
        take = min(per_image, spatial)
        draw = torch.rand(len(output), spatial, generator=generator)
        return draw.topk(take, 1).indices.to(output.device)

    def responses(self, output: Tensor, positions: Tensor) -> Tensor:
        """Outputs at positions, (N * per_image, groups, out / groups)."""
        flat = output.flatten(2).transpose(1, 2) if isinstance(self.module, nn.Conv2d) else (
            output.reshape(len(output), -1, output.shape[-1]))
        chosen = flat.gather(1, positions[..., None].expand(-1, -1, flat.shape[2]))
        return chosen.reshape(-1, self.groups, flat.shape[2] // self.groups)

    def rows(self, inputs: Tensor, positions: Tensor, width: int) -> Tensor:
        """Input rows at positions, (N * per_image, groups, in [+ 1]); `width` is the output's width."""
        module = self.module
        if isinstance(module, nn.Conv2d):
            rows = _patches(module, inputs, positions, width)
        else:
            flat = inputs.reshape(len(inputs), -1, inputs.shape[-1])
            rows = flat.gather(1, positions[..., None].expand(-1, -1, flat.shape[2])).reshape(-1, 1, flat.shape[2])
        if self.bias is not None:
            rows = torch.cat([rows, torch.ones_like(rows[..., :1])], 2)
        return rows


def outer_sums(left: Tensor, right: Tensor) -> Tensor:
    """(R, g, i), (R, g, o) -> (g, i, o): sums of outer products over rows, one matrix product a group."""
    return torch.bmm(left.permute(1, 2, 0), right.permute(1, 0, 2))


def _patches(conv: nn.Conv2d, inputs: Tensor, positions: Tensor, width: int) -> Tensor:
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    padded = F.pad(inputs, conv._reversed_padding_repeated_twice, mode=mode)
    per_image = positions.shape[1]
    image = torch.arange(len(inputs), device=inputs.device).repeat_interleave(per_image)
    row, column = positions.flatten() // width, positions.flatten() % width
    down, right = (torch.arange(size, device=inputs.device) * step
                   for size, step in zip(conv.kernel_size, conv.dilation, strict=True))
    rows = row[:, None] * conv.stride[0] + down
    columns = column[:, None] * conv.stride[1] + right
    channels_last = padded.permute(0, 2, 3, 1)
    patches = channels_last[image[:, None, None], rows[:, :, None], columns[:, None, :]]  # (R, kh, kw, C)
    return patches.permute(0, 3, 1, 2).reshape(len(image), conv.groups, -1)


@contextmanager
def projections(network: nn.Module) -> Iterator[list[Projection]]:
    """The projections of a network, in the order of its modules; attention is opened up inside the context."""
    found: list[Projection] = []
    opened: list[nn.MultiheadAttention] = []
    inside: set[nn.Module] = set()
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # a fused encoder layer calls none of its modules
    try:
        for name, module in list(network.named_modules()):
            if module in inside:
                continue
            if isinstance(module, nn.MultiheadAttention):
                inside.add(module.out_proj)
                if module.in_proj_weight is None or module.bias_k is not None or module.add_zero_attn:
                    continue  # separate widths or extra keys: left alone
                entry, leave = _open_attention(module)
                opened.append(module)
                found.append(Projection(f"{name}.in_proj", entry, module.in_proj_weight, module.in_proj_bias))
                found.append(Projection(f"{name}.out_proj", leave, module.out_proj.weight, module.out_proj.bias))
            elif isinstance(module, nn.Linear | nn.Conv2d):
                found.append(Projection(name, module, module.weight, module.bias))
        yield found
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for attention in opened:
            del attention.__dict__["forward"]


def _open_attention(attention: nn.MultiheadAttention) -> tuple[nn.Module, nn.Module]:
    """Give one attention layer a forward that applies its projections through modules that can be observed."""
    entry = _Affine(attention.in_proj_weight, attention.in_proj_bias)
    leave = _Affine(attention.out_proj.weight, attention.out_proj.bias)
    original: Callable[..., object] = attention.forward

    def forward(query: Tensor, key: Tensor, value: Tensor, *args: object, **options: object) -> object:
        masked = options.get("attn_mask") is not None or options.get("key_padding_mask") is not None
        if args or masked or query is not key or query is not value or not attention.batch_first:
            return original(query, key, value, *args, **options)
        parts = entry(query).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(parts[0], parts[1], parts[2])
        return leave(mixed.transpose(1, 2).flatten(2)), None

    attention.__dict__["forward"] = forward
    return entry, leave


class _Affine(nn.Module):
    """x W' + b over parameters that belong to another module."""

    def __init__(self, weight: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.borrowed = (weight, bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *self.borrowed)
