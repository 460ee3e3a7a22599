"""What a call to the pipeline asks for: labels, generators of start noise, sizes and times, checked."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from eqm_video.codec import Codec
from eqm_video.errors import UserError
from eqm_video.gamma import Decay, gamma_path
from eqm_video.limits import LARGEST_SIDE
from eqm_video.randomness import generator as seeded
from eqm_video.samplers import NAG, SAMPLERS, GradientDescent, Sampler, step_factors

Label = str | int | None
SAMPLER = {"kind": "nag", "step_size": 0.003, "mu": 0.35, "steps": 250, "guidance_scale": 1.0}  # where a model has none


def as_list(labels: Any, count: int | None, seeds: Any, generator: Any) -> list[Label]:
    """One label for each sample."""
    if count is not None and (not isinstance(count, int) or count < 1):
        raise UserError(f"num_samples is {count!r}; it must be a whole number of at least 1")
    if labels is None or isinstance(labels, (str, int)):
        if count is None:
            given = seeds if seeds is not None else generator
            count = len(given) if isinstance(given, Sequence) else 1
        return [labels] * count
    labels = list(labels)
    if not labels or (count is not None and count != len(labels)):
        raise UserError(f"{len(labels)} labels for {count or 'no'} samples; give one label for each sample")
    return labels


def make_generators(count: int, seeds: Sequence[int] | None, generator: Any) -> list[Generator]:
    """One generator of start noise for each sample; a seed's is the same on every machine."""
    if seeds is not None and generator is not None:
        raise UserError("seeds and generator exclude each other: give one of them")
    if isinstance(generator, Generator):
        return [generator] * count
    given = generator if generator is not None else seeds
    if given is None:
        given = torch.randint(2**62, (count,)).tolist()
    if len(given) != count:
        what = "seeds" if generator is None else "generators"
        raise UserError(f"{count} samples but {len(given)} {what}; give one for each sample")
    return [one if isinstance(one, Generator) else seeded("sample", int(one)) for one in given]


def unknown_label(label: str, known: Mapping[str, int], count: int) -> UserError:
    """The error for a label that the model does not know, with the nearest ones."""
    if not known:
        return UserError(f"label {label!r}: this model's labels have no names; give numbers from 0 to {count - 1}")
    near = difflib.get_close_matches(label, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    some = ", ".join(list(known)[:12]) + (f" ... ({len(known)} in all)" if len(known) > 12 else "")
    return UserError(f"unknown label {label!r}; {hint}known labels: {some}")


def label_ids(labels: Sequence[Label], names: Mapping[int, str], null: int) -> list[int]:
    """Numbers of labels given by name or number; None is the null label. Raises UserError for unknown ones."""
    numbers_of = {name: label for label, name in names.items()}
    found = []
    for label in labels:
        if label is None:
            found.append(null)
            continue
        if isinstance(label, str):
            if label not in numbers_of and not label.isdecimal():
                raise unknown_label(label, numbers_of, null)
            label = numbers_of.get(label, label)
        elif isinstance(label, Tensor):
            label = label.item()
        label = int(label)
        if not 0 <= label < null:
            raise UserError(f"label {label} is out of range: this model has {null} labels (0 to {null - 1})")
        found.append(label)
    return found


def frame_times(frames: int, fps: float | Sequence[float], reference_fps: float) -> Tensor:
    """When the frames of a clip are, in the network's reference frames: (T,), or (B, T) where each clip has its fps."""
    many = isinstance(fps, (list, tuple, np.ndarray))
    for rate in fps if many else [fps]:
        if not (isinstance(rate, numbers.Real) and math.isfinite(rate) and rate > 0):
            raise UserError(f"fps is {rate!r}; it must be a number above 0, such as {reference_fps:g}")
    units = torch.arange(frames, dtype=torch.float32)
    return torch.stack([units * (reference_fps / rate) for rate in fps]) if many else units * (reference_fps / fps)


def check_rates(fps: Any, count: int) -> Any:
    """`fps` as it is: a number, None for the model's, or a list of one for each of `count` samples."""
    if isinstance(fps, (list, tuple, np.ndarray)) and len(fps) != count:
        raise UserError(f"{count} samples but {len(fps)} fps; give one for each sample, or one number for all")
    return fps


def as_pixels(clips: Any) -> Tensor:
    """Clips uint8 (B, T, H, W, 3), an array or a tensor, as pixels (B, T, 3, H, W) in [-1, 1], float32."""
    array = np.asarray(clips)
    if array.dtype != np.uint8 or array.ndim != 5 or array.shape[-1] != 3:
        raise UserError(
            f"clips are {array.dtype} {array.shape}; they must be uint8 (B, T, height, width, 3), an image being T = 1"
        )
    return torch.from_numpy(np.ascontiguousarray(array)).movedim(-1, 2).float() / 127.5 - 1


def known_frames(known: Any, shape: tuple[int, int]) -> Tensor | None:
    """Frames held fixed, (B, T) bool: from such a tensor or array, or from frame numbers, the same for all samples.

    Negative numbers count from the end. UserError for anything else, a single number among it: it might be a frame, or
    how many are known.
    """
    if known is None:
        return None
    array = isinstance(known, (Tensor, np.ndarray))
    if array and known.dtype in (torch.bool, np.bool_):
        if tuple(known.shape) != shape:
            raise UserError(f"known has shape {tuple(known.shape)}; it must be (B, T) = {shape}")
        return known if isinstance(known, Tensor) else torch.from_numpy(known.copy())
    given = known.tolist() if array else known
    given = list(given) if isinstance(given, Iterable) else [None]
    if not all(isinstance(frame, numbers.Integral) and not isinstance(frame, bool) for frame in given):
        found = f"{known.dtype} {tuple(known.shape)}" if array else repr(known)
        raise UserError(
            f"known is {found}; it must be a list of frame numbers, such as [0, -1], or bool (B, T) = {shape}"
        )
    held, frames = torch.zeros(shape, dtype=torch.bool), shape[1]
    for frame in map(int, given):
        if not -frames <= frame < frames:
            raise UserError(
                f"known frame {frame} is not there: frames are 0 to {frames - 1}, or -{frames} to -1 from the end"
            )
        held[:, frame] = True
    return held


def check_turns(rule: Sampler, guidance_interval: Any) -> None:
    """UserError where frames cannot move in turn: with a solver, and guided for a part of a joint descent."""
    if hasattr(rule, "solve"):
        raise UserError(
            f"{rule!r} carries all frames together, and frames that move in turn are for the rules gd, nag, adam and "
            "langevin: take one of these, or leave frame_schedule (--frame-schedule) out"
        )
    if guidance_interval is not None:
        raise UserError("guidance_interval is a part of a joint descent: leave it or frame_schedule out")


def check_fraction(name: str, value: Any) -> float:
    """A number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < 1:
        raise UserError(f"{name} is {value!r}; it must be a number of at least 0 and below 1")
    return float(value)


def fit_size(codec: Codec, patch_size: int, size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) in pixels; UserError unless the codec's downsampling times the patch size divides them."""
    height, width = (size, size) if isinstance(size, int) else tuple(size)
    unit = codec.downsampling * patch_size
    if height < 1 or width < 1 or height % unit or width % unit:
        nearest = f"{codec.nearest_size(height, patch_size)}x{codec.nearest_size(width, patch_size)}"
        raise UserError(
            f"size {height}x{width} (height x width) is not divisible by {unit} = {codec.downsampling} (codec) x "
            f"{patch_size} (patch); the nearest is {nearest}"
        )
    if max(height, width) > LARGEST_SIDE:
        raise UserError(f"size {height}x{width} (height x width): the most is {LARGEST_SIDE:,} pixels a side")
    return height, width


def sampler_settings(given: Mapping[str, Any] | None) -> dict[str, Any]:
    """A model's recommended sampler, filled in: kind, the numbers of that sampler, steps, guidance_scale."""
    given = dict(given or {})
    kind = given.get("kind", SAMPLER["kind"])
    if kind not in SAMPLERS:
        raise UserError(f"sampler {kind!r} is not one of {', '.join(SAMPLERS)}")
    shared = {"kind", "steps", "guidance_scale"}
    own = {entry.name for entry in fields(SAMPLERS[kind])}
    everywhere = {entry.name for sampler in SAMPLERS.values() for entry in fields(sampler)}
    if unknown := set(given) - shared - everywhere:
        names = ", ".join(sorted(shared | own))
        raise UserError(f"unknown settings {sorted(unknown)} of the sampler {kind!r}; known are {names}")
    given = {name: value for name, value in given.items() if name in shared | own}  # older exports carry mu with gd
    start = {entry.name: entry.default for entry in fields(SAMPLERS[kind])} | {"kind": kind}
    return {**start, "steps": SAMPLER["steps"], "guidance_scale": SAMPLER["guidance_scale"], **given}


def choose_sampler(settings: Mapping[str, Any], sampler: str | Sampler | None, given: Mapping[str, Any]) -> Sampler:
    """A sampler by name (None: the one of `settings`) with the numbers of `settings`, and those `given` instead."""
    if sampler is not None and not isinstance(sampler, str):
        if given:
            raise UserError(f"a sampler given as an object brings its own numbers: leave out {', '.join(given)}")
        return sampler
    kind = sampler or settings["kind"]
    if kind not in SAMPLERS:
        raise UserError(f"sampler {kind!r} is not one of {', '.join(SAMPLERS)}")
    names = {entry.name for entry in fields(SAMPLERS[kind])}
    if surplus := set(given) - names:
        raise UserError(f"sampler {kind!r} has no {' and no '.join(sorted(surplus))}: leave it out")
    # A step size is one along the gradient for these; Adam's is a distance, and takes its own default.
    alike = {"gd", "nag", "langevin"}
    shared = kind == settings["kind"] or {kind, settings["kind"]} <= alike
    known = {name: value for name, value in settings.items() if name in names and (shared or name != "step_size")}
    try:
        return SAMPLERS[kind](**{**known, **given})
    except ValueError as error:
        raise UserError(str(error)) from error


def told_gammas(
    decay: Decay | None,
    sampler: Sampler,
    steps: int,
    schedule: str | Callable[[int, int], float],
    start_gamma: float,
    known: Tensor | None,
    per_frame: bool = False,
) -> Tensor | None:
    """What a network that is conditioned on gamma is told at each step of a descent; None for solvers, who know."""
    if hasattr(sampler, "solve"):
        return None
    if known is not None or per_frame:
        raise UserError(
            "this network is told gamma, and a descent tells one gamma to all frames, so that it cannot hold some of "
            "them: use euler, heun or dopri5, or leave per_frame and frame_schedule out"
        )
    if decay is None or not isinstance(sampler, (GradientDescent, NAG)):
        raise UserError(
            f"this network is told gamma (conditioned_on_gamma: true), which a descent with {sampler!r} does not know: "
            "use euler, heun or dopri5, or gd or nag with a model that says its decay"
        )
    sizes = [sampler.step_size * factor for factor in step_factors(schedule, steps)]
    return gamma_path(decay, sizes, steps, start_gamma)
