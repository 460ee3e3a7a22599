"""Fidelity of clips to true clips: PSNR and SSIM.

Legend: N clips, T frames, H W pixels; pixels uint8, channels last.
"""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from eqm_video.errors import UserError
from eqm_video.metrics.intervals import estimate
from eqm_video.metrics.metric import Paired
from eqm_video.metrics.psnr import psnr
from eqm_video.system.devices import double

WINDOW = 11  # pixels of SSIM's window


def ssim(clips: Tensor, truth: Tensor) -> Tensor:
    """Structural similarities, (N,) float64, of clips uint8 (N, T, H, W, 3): the mean over the frames.

    Wang et al. (2004) as torchmetrics computes it: a Gaussian window of 11 pixels, sigma 1.5. UserError without that
    package, and for frames of fewer than 11 pixels. In float32: float64 takes 60 times as long and differs in the fifth
    digit.
    """
    try:
        from torchmetrics.functional.image import structural_similarity_index_measure
    except ImportError as error:
        raise UserError("ssim needs torchmetrics; type pip install torchmetrics") from error
    if min(clips.shape[2:4]) < WINDOW:
        height, width = clips.shape[2:4]
        raise UserError(f"ssim needs frames of 11x11 pixels at least, and these have {height}x{width}: take psnr")
    values = []
    for pair in zip(clips, truth, strict=True):
        left, right = (side.movedim(-1, 1).float() for side in pair)
        values.append(structural_similarity_index_measure(left, right, data_range=255.0, reduction="none").mean())
    return double(torch.stack(values))


def fidelity(clips: Tensor, truth: Tensor) -> dict[str, dict[str, float]]:
    """PSNR (dB) and SSIM of clips uint8 (S, N, T, H, W, 3) to true clips (N, T, H, W, 3): means over S and N.

    With 95 % intervals over the N clips: {"psnr": {"mean", "low", "high"}, "ssim": ...}. SSIM is left out for frames of
    fewer than 11 pixels, its window, and without torchmetrics, which the extra `evaluate` has.
    """
    measures = {"psnr": partial(psnr, span=255, dims=4)}
    if min(truth.shape[2:4]) >= WINDOW and find_spec("torchmetrics") is not None:
        measures["ssim"] = ssim
    values = {}
    for name, measure in measures.items():
        by_clip = torch.stack([measure(each, truth) for each in clips]).mean(0)
        mean = estimate(by_clip[None])
        values[name] = {"mean": mean.mean, "low": mean.low, "high": mean.high}
    return values


class PSNR(Paired, name="psnr", title="PSNR"):
    """PSNR in dB of each clip to the true clip of the same name; the mean over the clips."""

    def compare(self, clips: Tensor, truth: Tensor) -> Tensor:
        """(N,) float64."""
        return psnr(clips, truth, span=255, dims=4)


class SSIM(Paired, name="ssim", title="SSIM"):
    """SSIM of each clip to the true clip of the same name, -1 to 1; the mean over frames and clips."""

    def compare(self, clips: Tensor, truth: Tensor) -> Tensor:
        """(N,) float64."""
        return ssim(clips, truth)
