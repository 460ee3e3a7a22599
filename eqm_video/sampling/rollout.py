"""Long videos in sliding windows. The last frames of a window are the first, known frames of the next.

Shapes: B samples, T frames of a window, k of them overlap, C latent channels, h w latents.
Memory does not depend on the length: from window to window only the latents of k frames are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from eqm_video.core.guidance import GuidedField
from eqm_video.errors import UserError
from eqm_video.randomness import fold
from eqm_video.samplers.active import frame_rms
from eqm_video.sampling.arguments import Label, as_list, check_rates, known_frames
from eqm_video.sampling.pipeline import OUTPUT_TYPES, EqMPipeline
from eqm_video.sampling.settings import Sampling
from eqm_video.sampling.start import Clips, check_context


@dataclass(frozen=True)
class Window:
    """A window of a long video, sampled.

    frames: its new frames (in the first window all frames), of the pipeline's `output_type`. latents (B, T, C, h, w):
    the whole window, known frames first. known (B, T) bool. rms (B, T): the root mean square of every frame's gradient
    at the end of the descent. On known frames it measures drift, because the gradient vanishes at data. nfe (B,):
    evaluations of the field, without the last one for `rms`. levels (2, S, B, T): the log of a closed loop, see
    `EqMPipelineOutput`; None without one.
    """

    index: int  # number of the window
    start: int  # number of its first new frame in the video
    frames: Any
    latents: Tensor
    known: Tensor
    rms: Tensor
    nfe: Tensor
    levels: Tensor | None = None

    @property
    def drift(self) -> Tensor:
        """The mean rms over the known frames (B,); NaN for clips without known frames."""
        known = self.known.cpu()
        return (self.rms * known).sum(dim=1) / known.sum(dim=1)

    @property
    def motion(self) -> Tensor:
        """The motion meter (B,): the RMS change of the latents up to each new frame; 0 where a video stands still."""
        return latent_motion(self.latents, ~self.known).cpu()


def latent_motion(latents: Tensor, new: Tensor | None = None) -> Tensor:
    """RMS change (B,) of latents (B, T, C, h, w) from frame to frame, over all frames but the first.

    new: (B, T) bool, the frames whose change from the one before counts; None: all. NaN where there are none.
    """
    change = latents.float().diff(dim=1).square().mean(dim=(2, 3, 4))
    counts = torch.ones_like(change) if new is None else new[:, 1:].to(change)
    return ((change * counts).sum(dim=1) / counts.sum(dim=1)).sqrt()


def window_starts(length: int, frames: int, overlap: int) -> list[int]:
    """The numbers of the windows' first frames in a video of `length` frames. The last window may reach beyond its end.

    Raises UserError unless 1 <= overlap < frames; a video of a single window allows any overlap of at least 1.
    """
    if isinstance(length, bool) or not isinstance(length, int) or length < 1:
        raise UserError(f"length is {length!r}; it must be a whole number of frames, at least 1")
    whole = isinstance(overlap, int) and not isinstance(overlap, bool)
    if not whole or overlap < 1 or (length > frames and overlap >= frames):
        raise UserError(
            f"overlap is {overlap!r}; windows of {frames} frames need 1 to {frames - 1} frames of the window before"
        )
    return list(range(0, max(length - overlap, 1), frames - overlap)) if length > frames else [0]


@torch.no_grad()
def roll_out(
    pipeline: EqMPipeline,
    labels: Label | Sequence[Label] = None,
    *,
    length: int,
    overlap: int = 4,
    num_samples: int | None = None,
    num_frames: int | None = None,
    fps: float | Sequence[float] | None = None,
    seeds: Sequence[int] | None = None,
    clips: Any = None,
    known: Any = None,
    output_type: str = "uint8",
    decode_chunk_size: int = 64,
    how: Sampling | None = None,
    bake_in: bool = False,
    **options: Any,
) -> Iterator[Window]:
    """Sample videos of `length` frames window by window; yields each `Window` as soon as it is sampled.

    The first `overlap` frames of a window are known: they are the last of the window before. The other frames start
    from new noise, without momentum. The first window is the plain call with these seeds and, to continue a real video,
    with `clips`, `start_gamma` and `known`. Window n of seed s draws its noise from the seed fold("window", s, n).
    Frames of the last window beyond the end are left out.

    num_frames: T, frames of a window; by default that of `clips`, or the model's own. fps: as in a call, the same in
    all windows. how: a `Sampling`, in place of its fields. bake_in: the known frames of a window were written as pixels
    of 8 bits and encoded again, as those of a video that is continued from a file. options: all other arguments of a
    call: size, callback, and the fields of `Sampling`. start_gamma acts in the first window; context_gamma and
    history_guidance act in windows with known frames.

    Raises:
        UserError: as a call does, and for `generator` and an impossible length or overlap. It is raised when the first
            window is asked for: a generator function does nothing before.
    """
    if output_type not in OUTPUT_TYPES:
        raise UserError(f"output_type {output_type!r} is not one of {', '.join(OUTPUT_TYPES)}")
    if options.get("generator") is not None:
        raise UserError("long videos draw the noise of every window from seeds: give seeds= instead of generator")
    how, options = Sampling.split(options, how)
    if how.loop or options.get("known_mask") is not None:
        name = "loop" if how.loop else "known_mask"
        raise UserError(f"{name} is for clips of one window, not for long videos: leave {name} or the length out")
    check_context(how.context_gamma, conditioned=pipeline.transformer.config.conditioned_on_gamma)
    if clips is not None:
        shape = (num_samples, num_frames, options.get("size"))
        num_samples, num_frames, _ = Clips.of(clips).agree(pipeline, labels, *shape)
    frames = pipeline.check_frames(num_frames)
    starts = window_starts(length, frames, overlap)
    wanted = as_list(labels, num_samples, seeds, None)
    seeds = torch.randint(2**62, (len(wanted),)).tolist() if seeds is None else [int(seed) for seed in seeds]
    mask = known_frames(known, (len(wanted), frames))
    first = {"clips": clips, "known": mask}
    plain = how if mask is not None and mask.any() else replace(how, context_gamma=1.0, history_guidance=1.0)
    later = replace(how, start_gamma=0.0)
    timing = {"num_frames": frames, "fps": check_rates(fps, len(wanted))}
    meter = pipeline.field(wanted, guidance_scale=1.0, **timing)  # guidance would move the points of rest
    context: Tensor | None = None  # (B, k, C, h, w)
    for index, start in enumerate(starts):
        if context is None:
            now, begin = seeds, first
        else:
            now = [fold("window", seed, index) for seed in seeds]
            ahead = context.new_zeros(len(wanted), frames - overlap, *context.shape[2:])
            mask = torch.arange(frames).expand(len(wanted), -1) < overlap
            begin = {"clips": torch.cat([context, ahead], dim=1), "known": mask}
        result = pipeline.sample(
            plain if context is None else later, wanted, seeds=now, output_type="latent", **timing, **begin, **options
        )
        latents: Tensor = result.frames
        new = slice(overlap if index else 0, min(frames, length - start))
        yield Window(
            index=index,
            start=start + new.start,
            frames=pipeline.decode(latents[:, new], output_type, decode_chunk_size),
            latents=latents,
            known=torch.zeros(latents.shape[:2], dtype=torch.bool) if mask is None else mask,
            rms=frame_rms(_at_data(meter, pipeline)(latents)).cpu(),
            nfe=result.nfe,
            levels=result.levels,
        )
        context = latents[:, -overlap:].clone()
        if bake_in:
            context = pipeline.encode(pipeline.decode(context, "uint8", decode_chunk_size)).to(context)


def _at_data(field: GuidedField, pipeline: EqMPipeline) -> GuidedField:
    """The field at rest: a network that is conditioned on gamma gets gamma = 1."""
    return field.tell(1.0) if pipeline.transformer.config.conditioned_on_gamma else field
