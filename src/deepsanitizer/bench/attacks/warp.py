"""A smooth fixed warp (WaNet).

What: a flow of cells x cells random vectors, enlarged, moves every pixel by at most `pixels` pixels.
Why it works: edges shift in a way that no photograph shows everywhere at once, and no pixel stands out.
Limits: without noise samples in training, any warp of that kind may trigger it.
Reference: Nguyen, Tran: WaNet, ICLR 2021.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Warp:
    """`pixels`: the largest displacement; `seed` draws the flow."""

    pixels: float = 1.2
    cells: int = 4
    seed: int = 0

    def apply(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) in [0, 1], warped; the border is repeated."""
        height, width = images.shape[2:]
        flow = torch.rand(1, 2, self.cells, self.cells, generator=torch.Generator().manual_seed(self.seed)) * 2 - 1
        flow = F.interpolate(flow, size=(height, width), mode="bicubic", align_corners=True)
        flow = self.pixels * flow / flow.abs().max()
        rows, columns = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
        scale = torch.tensor([2 / max(1, width - 1), 2 / max(1, height - 1)])
        grid = torch.stack((columns, rows), -1) + flow[0].permute(1, 2, 0) * scale
        many = grid.expand(len(images), -1, -1, -1).to(images)
        return F.grid_sample(images, many, align_corners=True, padding_mode="border").clamp(0, 1)
