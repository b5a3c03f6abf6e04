"""Tensors to the small PNG pictures of a report, and words for where two images differ.

Pictures of one trigger share a `group`: give it a name a reader understands, such as "class 14 (Stop), add".
"""

import base64
import io
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from deepsanitizer.types import Picture

Role = Literal["pattern", "dummy", "triggered", "difference"]


def to_picture(image: Tensor, *, role: Role, caption: str, group: str = "", upscale_to: int = 128) -> Picture:
    """A picture of one image (C, H, W) with pixels in [0, 1]; values outside are clipped, NaN is black.

    One channel is shown in grey, three in colour, any other number as the mean over channels. Small images
    are enlarged by whole factors, nearest neighbour, as far as they stay within `upscale_to` pixels on the
    longer side, so that every pixel of the network's input stays visible; large ones are never shrunk.
    """
    assert image.ndim == 3, image.shape
    assert image.numel() > 0, image.shape
    pixels = torch.nan_to_num(image.detach().to("cpu", torch.float32)).clamp(0, 1)
    if pixels.shape[0] != 3:
        pixels = pixels.mean(0, keepdim=True)
    factor = max(1, upscale_to // max(pixels.shape[1:]))
    pixels = pixels.repeat_interleave(factor, 1).repeat_interleave(factor, 2)
    array = (pixels * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(array if array.shape[2] == 3 else array[:, :, 0])).save(
        buffer, "PNG", optimize=True)
    return Picture(role=role, caption=caption, group=group,
                   png_base64=base64.b64encode(buffer.getvalue()).decode("ascii"))


def difference_picture(before: Tensor, after: Tensor, *, group: str = "", upscale_to: int = 128) -> Picture:
    """after - before, around mid-grey, amplified so that the largest change just fits; the caption says so.

    The amplification is a whole number from 1 to 50: an invisible trigger is made visible, noise is not blown
    up beyond reason.
    """
    assert before.shape == after.shape, (before.shape, after.shape)
    change = torch.nan_to_num((after - before).detach().to("cpu", torch.float32))
    largest = float(change.abs().max())
    if largest == 0:
        caption = "difference: none"
        amplify = 1
    else:
        amplify = int(min(50, max(1, 0.5 // largest)))
        caption = f"difference, amplified {amplify}×" if amplify > 1 else "difference"
    return to_picture(0.5 + amplify * change, role="difference", caption=caption, group=group,
                      upscale_to=upscale_to)


def place_in_words(before: Tensor, after: Tensor, *, concentrated: float = 0.5) -> str:
    """Where a change sits: "in the upper left corner", "in the centre" ...; "" if everywhere or nowhere.

    Takes (C, H, W) or (N, C, H, W). The change has a place if at least 90 % of its squared size lies in a box
    of at most the share `concentrated` of each side, centred on its centroid; the place is the centroid's
    cell in a 3 by 3 grid.
    """
    assert before.shape == after.shape, (before.shape, after.shape)
    height, width = before.shape[-2:]
    energy = (after - before).detach().to("cpu", torch.float32).square().reshape(-1, height, width).sum(0)
    total = float(energy.sum())
    if not 0 < total < float("inf"):
        return ""
    rows, columns = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    y, x = float((energy.sum(1) * rows).sum()) / total, float((energy.sum(0) * columns).sum()) / total
    inside = ((rows - y).abs() <= concentrated * height / 2)[:, None] & (
        (columns - x).abs() <= concentrated * width / 2)[None]
    if float(energy[inside].sum()) < 0.9 * total:
        return ""
    vertical = ("upper", "", "lower")[min(2, int(3 * y / height))]
    horizontal = ("left", "", "right")[min(2, int(3 * x / width))]
    if vertical and horizontal:
        return f"in the {vertical} {horizontal} corner"
    if vertical or horizontal:
        return {"upper": "at the top", "lower": "at the bottom"}.get(vertical, f"at the {horizontal} edge")
    return "in the centre"
