"""Peak signal-to-noise ratio by hand, whatever the span of the values and their shape."""

from __future__ import annotations

import math

import pytest
import torch

from eqm_video.metrics.psnr import psnr


def test_a_difference_of_five_grey_levels_by_hand():
    pixels = torch.full((2, 3, 4, 4), 100, dtype=torch.uint8)
    expected = 20 * math.log10(255 / 5)
    assert psnr(pixels, pixels + 5, span=255).tolist() == pytest.approx([expected] * 2)
    scaled = [picture.float() / 127.5 - 1 for picture in (pixels, pixels + 5)]
    assert psnr(*scaled, span=2).tolist() == pytest.approx([expected] * 2)


def test_one_number_for_the_last_dimensions():
    truth = torch.zeros(2, 5, 3, 4, 4)
    pixels = truth.clone()
    pixels[1, 0] += 1  # a fifth of the frames of one clip
    assert psnr(pixels, truth, span=2).shape == (2, 5)
    assert psnr(pixels, truth, span=2, dims=4).tolist() == pytest.approx([100, 10 * math.log10(4 * 5)])


def test_equal_pictures_have_the_highest_number_and_other_shapes_are_refused():
    assert psnr(torch.ones(1, 3, 2, 2), torch.ones(1, 3, 2, 2), span=2).tolist() == [100]
    with pytest.raises(ValueError, match="must have one shape"):
        psnr(torch.ones(1, 3, 2, 2), torch.ones(3, 2, 2), span=2)
