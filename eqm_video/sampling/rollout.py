"""Long videos: windows that slide over a video of any length, each knowing the last frames of the one before.

Shapes: B samples, T frames of a window, k of them overlap, C latent channels, h w latents.
Memory does not depend on the length: what is kept from window to window are the latents of k frames.
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
    """One window of a long video, at rest.

    frames: its new frames (the first window's are all), by `output_type` as a pipeline's. latents (B, T, C, h, w) of
    the whole window, known frames first. known (B, T) bool. rms (B, T): the root mean square of every frame's gradient
    where it came to rest; on known frames it is the meter of drift, for a field has its rest where data are.
    nfe (B,): evaluations, without the one for `rms`.
    """

    index: int  # of the window
    start: int  # of its first new frame in the video
    frames: Any
    latents: Tensor
    known: Tensor
    rms: Tensor
    nfe: Tensor

    @property
    def drift(self) -> Tensor:
        """(B,): the mean rms over the known frames, NaN where none is known."""
        known = self.known.cpu()
        return (self.rms * known).sum(dim=1) / known.sum(dim=1)


def window_starts(length: int, frames: int, overlap: int) -> list[int]:
    """The places of the windows' first frames in a video of `length` frames; the last window may reach beyond its end.

    Raises UserError unless 1 <= overlap < frames; a video of one window may name any overlap of at least 1.
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
    **options: Any,
) -> Iterator[Window]:
    """Sample videos of `length` frames window by window; yields each `Window` as soon as it is at rest.

    Every window descends by the one loop with its first `overlap` frames known: the last of the window before. The
    others start from new noise and without momentum. The first window is the plain call with these seeds, from `clips`,
    `start_gamma` and `known` where they are given (to continue a real video); window n of seed s draws its noise from
    the seed fold("window", s, n). What of the last window lies beyond the end is left out.

    num_frames: T, frames of a window; that of `clips`, or the model's own, by default. fps: of all windows, as of a
    call. how: a `Sampling`, in place of its fields. options: everything else of a call: size, callback, and the fields
    of `Sampling`, of which start_gamma acts in the first window, context_gamma and history_guidance where frames are
    known.

    Raises:
        UserError: as a call does, for a length or an overlap that windows cannot have, and for `generator`; at the
            first window, for a generator function does nothing before.
    """
    if output_type not in OUTPUT_TYPES:
        raise UserError(f"output_type {output_type!r} is not one of {', '.join(OUTPUT_TYPES)}")
    if options.get("generator") is not None:
        raise UserError("long videos draw the noise of every window from seeds: give seeds= instead of generator")
    how, options = Sampling.split(options, how)
    check_context(how.context_gamma, told=pipeline.transformer.config.conditioned_on_gamma)
    if clips is not None:
        shape = (num_samples, num_frames, options.get("size"))
        num_samples, num_frames, _ = Clips.of(clips).agree(pipeline, labels, *shape)
    frames = pipeline.check_frames(num_frames)
    starts = window_starts(length, frames, overlap)
    wanted = as_list(labels, num_samples, seeds, None)
    seeds = torch.randint(2**62, (len(wanted),)).tolist() if seeds is None else [int(seed) for seed in seeds]
    held = known_frames(known, (len(wanted), frames))
    first = {"clips": clips, "known": held}
    plain = how if held is not None and held.any() else replace(how, context_gamma=1.0, history_guidance=1.0)
    later = replace(how, start_gamma=0.0)
    timing = {"num_frames": frames, "fps": check_rates(fps, len(wanted))}
    meter = pipeline.field(wanted, guidance_scale=1.0, **timing)  # guidance would move the places of rest
    context: Tensor | None = None  # (B, k, C, h, w)
    for index, start in enumerate(starts):
        if context is None:
            now, given = seeds, first
        else:
            now = [fold("window", seed, index) for seed in seeds]
            ahead = context.new_zeros(len(wanted), frames - overlap, *context.shape[2:])
            held = torch.arange(frames).expand(len(wanted), -1) < overlap
            given = {"clips": torch.cat([context, ahead], dim=1), "known": held}
        ways = plain if context is None else later
        result = pipeline.sample(ways, wanted, seeds=now, output_type="latent", **timing, **given, **options)
        latents: Tensor = result.frames
        new = slice(overlap if index else 0, min(frames, length - start))
        yield Window(
            index=index,
            start=start + new.start,
            frames=pipeline.decode(latents[:, new], output_type, decode_chunk_size),
            latents=latents,
            known=torch.zeros(latents.shape[:2], dtype=torch.bool) if held is None else held,
            rms=frame_rms(_at_data(meter, pipeline)(latents)).cpu(),
            nfe=result.nfe,
        )
        context = latents[:, -overlap:].clone()


def _at_data(field: GuidedField, pipeline: EqMPipeline) -> GuidedField:
    """The field as it is at rest: a network that is told gamma is told 1."""
    return field.tell(1.0) if pipeline.transformer.config.conditioned_on_gamma else field
