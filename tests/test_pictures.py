import base64
import io

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from deepsanitizer.pictures import difference_picture, place_in_words, to_picture
from deepsanitizer.types import Picture


def pixels(picture: Picture) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(base64.b64decode(picture.png_base64))) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def test_colour_is_kept_and_enlarged_by_whole_pixels() -> None:
    image = torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(1))
    shown = pixels(to_picture(image, role="dummy", caption="c", group="g"))
    assert shown.shape == (80, 120, 3)
    expected = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(shown[::4, ::4], expected)
    np.testing.assert_array_equal(shown[3::4, 3::4], expected)


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_other_channel_counts_are_grey_by_their_mean(channels: int) -> None:
    image = torch.linspace(0, 1, channels).view(-1, 1, 1).expand(channels, 28, 28)
    shown = pixels(to_picture(image, role="pattern", caption="c"))
    assert shown.shape == (112, 112)
    assert abs(int(shown[0, 0]) - 255 * float(image.mean())) <= 0.5


def test_large_images_are_not_shrunk_and_strange_values_are_clipped() -> None:
    image = torch.zeros(1, 200, 150)
    image[0, 0, :3] = torch.tensor([float("nan"), 7.0, -3.0])
    shown = pixels(to_picture(image, role="dummy", caption="c"))
    assert shown.shape == (200, 150)
    assert shown[0, :3].tolist() == [0, 255, 0]


def test_input_is_untouched_and_may_carry_gradients() -> None:
    image = torch.rand(3, 8, 8).requires_grad_()
    before = image.detach().clone()
    picture = to_picture(image, role="triggered", caption="with", group="place, class 3")
    assert torch.equal(image.detach(), before)
    assert (picture.role, picture.caption, picture.group) == ("triggered", "with", "place, class 3")


def test_a_faint_difference_is_amplified_around_grey_and_says_so() -> None:
    before = torch.full((1, 16, 16), 0.5)
    after = before.clone()
    after[0, 0, 0] += 0.04
    after[0, 0, 1] -= 0.02
    picture = difference_picture(before, after, upscale_to=16)
    assert picture.caption == "difference, amplified 12×"
    assert picture.role == "difference"
    shown = pixels(picture).astype(int)
    assert abs(shown[0, 0] - 255 * 0.98) <= 1
    assert abs(shown[0, 1] - 255 * 0.26) <= 1
    assert shown[5, 5] in (127, 128)


def test_no_difference_and_a_full_one() -> None:
    plain = torch.zeros(3, 8, 8)
    assert difference_picture(plain, plain).caption == "difference: none"
    assert difference_picture(plain, plain + 1).caption == "difference"
    assert "50×" in difference_picture(plain, plain + 1e-5).caption


@pytest.mark.parametrize(
    ("rows", "columns", "words"),
    [
        (slice(0, 6), slice(0, 6), "in the upper left corner"),
        (slice(26, 32), slice(25, 31), "in the lower right corner"),
        (slice(0, 4), slice(14, 18), "at the top"),
        (slice(28, 32), slice(13, 18), "at the bottom"),
        (slice(13, 18), slice(0, 5), "at the left edge"),
        (slice(13, 18), slice(28, 32), "at the right edge"),
        (slice(13, 19), slice(13, 19), "in the centre"),
        (slice(0, 32), slice(0, 32), ""),
    ],
)
def test_where_a_change_sits(rows: slice, columns: slice, words: str) -> None:
    before = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.5
    after = before.clone()
    after[..., rows, columns] += 0.4
    assert place_in_words(before, after) == words
    assert place_in_words(before[0], after[0]) == words


def test_no_change_has_no_place() -> None:
    image = torch.rand(3, 8, 8)
    assert place_in_words(image, image) == ""
    assert place_in_words(image, image * float("nan")) == ""
