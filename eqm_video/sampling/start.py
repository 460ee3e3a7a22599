"""The start of a descent: noise, or clips that are partly noised, with known frames.

Shapes: B samples, T frames, C latent channels, H W pixels, h w latents.
"""

from __future__ import annotations

import numbers
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from eqm_video.core.objective import interpolate
from eqm_video.core.region import tokens
from eqm_video.errors import UserError
from eqm_video.sampling.arguments import as_pixels, check_fraction, known_frames

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from eqm_video.codec import Codec


@dataclass(frozen=True)
class Clips:
    """Clips to start from: pixels (B, T, 3, H, W) in [-1, 1], or latents (B, T, C, h, w)."""

    values: Tensor
    latent: bool

    @classmethod
    def of(cls, clips: Any) -> Clips:
        """The clips of a call: uint8 (B, T, H, W, 3), or a float tensor of latents. UserError for anything else."""
        if not isinstance(clips, Tensor) or not clips.is_floating_point():
            return cls(as_pixels(clips), latent=False)
        if clips.ndim != 5 or not bool(clips.isfinite().all()):
            fault = f"have the shape {tuple(clips.shape)}" if clips.ndim != 5 else "hold infinite or NaN values"
            raise UserError(f"clips of floating point are latents, finite and (B, T, C, h, w), but these {fault}")
        return cls(clips, latent=True)

    def size(self, codec: Codec) -> tuple[int, int]:
        """(H, W) in pixels; `codec` translates from latents."""
        scale = codec.downsampling if self.latent else 1
        return self.values.shape[-2] * scale, self.values.shape[-1] * scale

    def encode(self, codec: Codec, like: Tensor) -> Tensor:
        """The clips as latents, on the device and in the precision of `like`, the noise of these samples.

        UserError where their shape differs from that of `like`.
        """
        values = self.values.to(like.device)
        latents = (values if self.latent else codec.encode(values)).to(like.dtype)
        if latents.shape != like.shape:
            raise UserError(
                f"the clips are latents {tuple(latents.shape)}, and this model's are {tuple(like.shape)}: give latents "
                "of its own codec, or pixels as uint8 (B, T, H, W, 3)"
            )
        return latents

    def agree(
        self, model: DiffusionPipeline, labels: Any, num_samples: int | None, num_frames: int | None, size: Any
    ) -> tuple[int | None, int, tuple[int, int]]:
        """(num_samples, num_frames, size) of a call with these clips; UserError where its arguments differ."""
        (count, frames), own = self.values.shape[:2], self.size(model.codec)
        wanted_count = len(labels) if isinstance(labels, (list, tuple)) else num_samples
        if wanted_count not in (None, count) or num_frames not in (None, frames):
            raise UserError(
                f"the clips to start from are {count} of {frames} frames, but asked are "
                f"{wanted_count or count} samples of {num_frames or frames} frames: give a clip for each sample, or "
                "leave the numbers of samples and frames out"
            )
        trained = model.config.size if size is None else size
        wanted = (trained, trained) if isinstance(trained, int) or trained is None else tuple(trained)
        if self.latent:
            _check_latents(self.values, model.codec, own if trained is None else wanted)
        if trained is not None and wanted != own:
            hint = "leave size out" if size is not None else f"resize them, or say size={own} if that is what you want"
            raise UserError(
                f"the clips to start from have {own[0]}x{own[1]} pixels (height x width), but "
                f"{'size is' if size is not None else 'this model is for'} {wanted[0]}x{wanted[1]}: {hint}"
            )
        return None if isinstance(labels, (list, tuple)) else count, frames, own


def known_pixels(mask: Any, clips: Clips, scale: int) -> Tensor | None:
    """Known pixels (B, T, H, W) bool, of a bool mask (H, W), (T, H, W) or (B, T, H, W); None stays None.

    scale: pixels of a latent's side, if the clips are latents. UserError for another shape, and for clips all of whose
    pixels are known.
    """
    if mask is None:
        return None
    values = torch.as_tensor(mask)
    batch, frames, _, height, width = clips.values.shape
    side = scale if clips.latent else 1
    shape = (batch, frames, height * side, width * side)
    if values.dtype != torch.bool or not 2 <= values.ndim <= 4 or values.shape != shape[4 - values.ndim :]:
        raise UserError(
            f"known_mask is {values.dtype} {tuple(values.shape)}; it must be bool, true where pixels are known: "
            f"(H, W), (T, H, W) or (B, T, H, W) = {shape}"
        )
    if bool(values.all()):
        raise UserError("known_mask: all pixels are known, so that nothing is left to sample; leave some out")
    return values.expand(shape)


@dataclass(frozen=True)
class Start:
    """The start of a descent; `finish` puts the known frames back into its end."""

    latents: Tensor  # (B, T, C, h, w)
    noise: Tensor  # (B, T, C, h, w): the start noise of every frame, of known ones too
    region: Tensor | None = None  # (B, T, 1, h, w) bool: known tokens of the frames that are not known
    known: Tensor | None = None  # (B, T) bool: frames that stay as they are
    clean: Tensor | None = None  # (B, T, C, h, w): the latents of the clips

    @classmethod
    def of(
        cls,
        noise: Tensor,
        codec: Codec,
        clips: Clips | None,
        *,
        gamma: float,
        known: Any,
        context_gamma: float,
        pixels: Tensor | None = None,
    ) -> Start:
        """Clips mixed with their noise, known frames at `context_gamma`, the others at `gamma`.

        pixels: (B, T, H, W) bool, known ones, see `known_pixels`. Without clips: the noise. `check_start` checks the
        numbers before. UserError for latents of another codec.
        """
        if clips is None:
            return cls(noise, noise)
        mask = known_frames(known, tuple(noise.shape[:2]))
        clean = clips.encode(codec, noise)
        gammas = torch.full(clean.shape[:2], float(gamma), dtype=noise.dtype, device=noise.device)
        if mask is not None:
            mask = mask.to(noise.device)
            gammas = gammas.masked_fill(mask, float(context_gamma))
        region = None if pixels is None else tokens(pixels.to(noise.device), codec.downsampling)[:, :, None]
        return cls(interpolate(clean, noise, gammas), noise, region=region, known=mask, clean=clean)

    @property
    def unknown(self) -> Tensor:
        """The mask (B, T) of the frames that descend."""
        shape = self.latents.shape[:2]
        return torch.ones(shape, dtype=torch.bool, device=self.latents.device) if self.known is None else ~self.known

    def finish(self, latents: Tensor) -> Tensor:
        """The end of a descent (B, T, C, h, w) with the known frames and tokens of the clips in their places."""
        if self.region is not None:
            latents = torch.where(self.region, self.clean, latents)
        if self.known is None:
            return latents
        return torch.where(self.known[:, :, None, None, None], self.clean, latents)


def check_start(
    clips: Clips | None,
    gamma: float,
    known: Any,
    context_gamma: float,
    history_guidance: float,
    *,
    conditioned: bool,
    masked: bool = False,
) -> Tensor | None:
    """The mask (B, T) of known frames, None without any. UserError for a start that is impossible or has no effect.

    Args:
        clips, gamma, known, context_gamma: as for `Start.of`. history_guidance: as in a call.
        conditioned: whether the network is conditioned on gamma. masked: whether a part of frames is known.
    """
    gamma, context_gamma = check_fraction("start_gamma", gamma), check_context(context_gamma, conditioned=conditioned)
    if clips is None and (gamma or known is not None or masked):
        raise UserError("start_gamma, known_mask and known need clips to start from: give clips=")
    mask = None if known is None else known_frames(known, tuple(clips.values.shape[:2]))
    if mask is not None and bool(mask.any()):
        return mask
    if context_gamma != 1 or history_guidance != 1:
        raise UserError("context_gamma and history_guidance are about known frames: give known= at least one frame")
    if clips is not None and gamma == 0 and not masked:
        raise UserError(
            "clips are given, but no frame of them is known and start_gamma is 0, so that they would have "
            "no effect: give known=, such as [0], or start_gamma= above 0, or leave clips out"
        )
    return None


def check_context(value: Any, *, conditioned: bool = False) -> float:
    """A context_gamma as a float in (0, 1]; a network that is conditioned on gamma allows only 1. UserError else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 < value <= 1:
        raise UserError(f"context_gamma is {value!r}; it must be a number above 0 and at most 1 (1 shows known frames)")
    if conditioned and value != 1:
        raise UserError(
            f"context_gamma is {value!r}, but this network is conditioned on gamma, which is 1 on known frames: "
            "context_gamma (--context-gamma) needs a network without that condition, leave it out"
        )
    return float(value)


def _check_latents(values: Tensor, codec: Codec, size: tuple[int, int]) -> None:
    """UserError unless latents (B, T, C, h, w) have the shape that `codec` makes of clips of `size` pixels."""
    theirs, own = tuple(values.shape[2:]), (codec.latent_channels, *(side // codec.downsampling for side in size))
    if theirs != own:
        raise UserError(
            f"the clips are latents of another codec or size: theirs are {theirs} (C, h, w), and this model's are "
            f"{own} for {size[0]}x{size[1]} pixels; give latents of this model's codec, or pixels as uint8 "
            "(B, T, H, W, 3)"
        )
