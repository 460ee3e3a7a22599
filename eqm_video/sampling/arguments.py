"""The arguments of a pipeline call, checked: labels, seeds and generators, sizes, frame times, samplers."""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Generator, Tensor

from eqm_video.core.decay import Decay, gamma_path
from eqm_video.errors import UserError
from eqm_video.limits import LARGEST_SIDE
from eqm_video.names import as_label
from eqm_video.randomness import generator as seeded
from eqm_video.samplers import NAG, RULES, SAMPLERS, GradientDescent, Sampler, knows_gamma, step_factors
from eqm_video.sampling.model_settings import is_whole, whole

if TYPE_CHECKING:
    from eqm_video.codec import Codec

Label = str | int | None
LATEST = 1e30  # reference frames: times are float32, and their squares must be finite
WALK = {"steps": 250, "step_size": NAG.step_size}  # of the paper: for models whose own sampler takes few steps


def plain_value(value: Any) -> Any:
    """The number in a tensor or an array of a single value; anything else unchanged."""
    single = isinstance(value, (Tensor, np.ndarray, np.generic)) and math.prod(value.shape) == 1
    return value.item() if single else value


def as_list(labels: Any, count: int | None, seeds: Any, generator: Any) -> list[Label]:
    """The labels of a call as a list with one label for each sample.

    A single label, or None, is repeated `count` times; without `count` the seeds or generators say how many samples
    there are. UserError where the numbers disagree.
    """
    count = None if count is None else whole("num_samples", count)
    if labels is None or isinstance(labels, (str, numbers.Real)) or getattr(labels, "shape", None) == ():
        if count is None:
            sources = seeds if seeds is not None else generator
            count = len(sources) if hasattr(sources, "__len__") and getattr(sources, "shape", None) != () else 1
        return [labels] * count
    if not isinstance(labels, Iterable) or isinstance(labels, Mapping):
        raise UserError(f"labels are {labels!r}; give a list of names or numbers, one for each sample, or a single one")
    labels = list(labels)
    if not labels or (count is not None and count != len(labels)):
        raise UserError(f"{len(labels)} labels for {count or 'no'} samples; give one label for each sample")
    return labels


def make_generators(count: int, seeds: Sequence[int] | None, generator: Any) -> list[Generator]:
    """A generator of start noise for each sample. A seed gives the same numbers on every machine.

    Without seeds and generators, seeds are drawn from torch's global generator. UserError for both at once, and for
    another number than `count`.
    """
    if seeds is not None and generator is not None:
        raise UserError("seeds and generator exclude each other: give one of them")
    if isinstance(generator, Generator):
        return [generator] * count
    sources, what = (seeds, "seeds") if generator is None else (generator, "generators")
    if sources is None:
        sources = torch.randint(2**62, (count,)).tolist()
    if not hasattr(sources, "__len__") or isinstance(sources, (str, bytes)) or getattr(sources, "shape", None) == ():
        raise UserError(f"{what} are {sources!r}; give a list of them, one for each sample, such as [0, 1]")
    if len(sources) != count:
        raise UserError(f"{count} samples but {len(sources)} {what}; give one for each sample")
    return [_generator(seed) for seed in sources]


def _generator(seed: Any) -> Generator:
    if isinstance(seed, Generator):
        return seed
    if not is_whole(value := plain_value(seed)):
        raise UserError(
            f"the seed {seed!r} is no whole number: give whole numbers, such as [0, 1], one for each sample"
        )
    return seeded("sample", int(value))


def unknown_label(label: str, known: Mapping[str, int], count: int) -> UserError:
    """The error for a label that the model does not know. It names the nearest of the `count` labels."""
    if not known:
        return UserError(f"label {label!r}: this model's labels have no names; give numbers from 0 to {count - 1}")
    near = difflib.get_close_matches(label, known, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    some = ", ".join(list(known)[:12]) + (f" ... ({len(known)} in all)" if len(known) > 12 else "")
    return UserError(f"unknown label {label!r}; {hint}known labels: {some}")


def label_ids(labels: Sequence[Label], names: Mapping[int, str], null: int) -> list[int]:
    """The numbers of labels, which are names or numbers; None is the null label. UserError for unknown labels."""
    numbers_of = {as_label(name): label for label, name in names.items()}
    return [null if label is None else _label_id(label, names, numbers_of, null) for label in labels]


def _label_id(wanted: Label, names: Mapping[int, str], numbers_of: Mapping[str, int], null: int) -> int:
    """The number of a label. Text is a name, or digits if no name of the model consists of digits.

    Names are compared as labels (`as_label`): file systems may store an accented letter as two characters.
    """
    label = plain_value(wanted)
    if isinstance(label, str):
        word = as_label(label)
        if word not in numbers_of and (not word.isdecimal() or any(name.isdecimal() for name in numbers_of)):
            raise unknown_label(word, numbers_of, null)
        label = numbers_of[word] if word in numbers_of else int(word)
    if not is_whole(label):
        raise UserError(f"label {wanted!r} is no label: give names, or whole numbers from 0 to {null - 1}")
    if not 0 <= label < null:
        raise UserError(f"label {label} is out of range: this model has {null} labels (0 to {null - 1})")
    if names and int(label) not in names:
        raise UserError(
            f"label {label} has no name: this model was trained on {len(names)} of its {null} labels: give one "
            f"of these, such as {', '.join(list(numbers_of)[:4])}"
        )
    return int(label)


def frame_times(frames: int, fps: float | Sequence[float], reference_fps: float) -> Tensor:
    """Times of a clip's frames in the network's unit, reference frames: (T,), or (B, T) for a list of rates.

    UserError unless every rate is a finite number above 0.
    """
    many = isinstance(fps, (list, tuple, np.ndarray))
    for rate in fps if many else [fps]:
        real = isinstance(rate, numbers.Real) and not isinstance(rate, bool)
        if not (real and math.isfinite(rate) and rate > 0):
            raise UserError(f"fps is {rate!r}; it must be a number above 0, such as {reference_fps:g}")
        if frames * reference_fps / rate > LATEST:
            raise UserError(
                f"fps is {rate!r}, and {frames} frames would end at a time too large for float32: give a larger fps"
            )
    units = torch.arange(frames, dtype=torch.float32)
    return torch.stack([units * (reference_fps / rate) for rate in fps]) if many else units * (reference_fps / fps)


def check_rates(fps: Any, count: int) -> Any:
    """`fps` itself: a number, None for the model's own, or a list; UserError unless a list has `count` rates."""
    if isinstance(fps, (list, tuple, np.ndarray)) and len(fps) != count:
        raise UserError(f"{count} samples but {len(fps)} fps; give one for each sample, or one number for all")
    return fps


def as_pixels(clips: Any) -> Tensor:
    """Clips uint8 (B, T, H, W, 3), an array or a tensor, as pixels (B, T, 3, H, W) in [-1, 1], float32."""
    try:
        array = np.asarray(clips)
    except ValueError as error:  # lists of unequal lengths
        raise UserError(f"clips are no array (B, T, height, width, 3): {error}") from error
    if array.dtype != np.uint8 or array.ndim != 5 or array.shape[-1] != 3:
        raise UserError(
            f"clips are {array.dtype} {array.shape}; they must be uint8 (B, T, height, width, 3), an image being T = 1"
        )
    return torch.from_numpy(np.ascontiguousarray(array)).movedim(-1, 2).float() / 127.5 - 1


def known_frames(known: Any, shape: tuple[int, int]) -> Tensor | None:
    """The mask (B, T) bool of known frames, from such a tensor or array, or from frame numbers for all samples.

    Negative numbers count from the end; None stays None. UserError for anything else, also for a single number: it
    could mean a frame or a count of frames.
    """
    if known is None:
        return None
    array = isinstance(known, (Tensor, np.ndarray))
    if array and known.dtype in (torch.bool, np.bool_):
        if tuple(known.shape) != shape:
            raise UserError(f"known has shape {tuple(known.shape)}; it must be (B, T) = {shape}")
        return known if isinstance(known, Tensor) else torch.from_numpy(known.copy())
    listed = known.tolist() if array else known
    listed = list(listed) if isinstance(listed, Iterable) else [None]
    if not all(isinstance(frame, numbers.Integral) and not isinstance(frame, bool) for frame in listed):
        shown = f"{known.dtype} {tuple(known.shape)}" if array else repr(known)
        raise UserError(
            f"known is {shown}; it must be a list of frame numbers, such as [0, -1], or bool (B, T) = {shape}"
        )
    mask, frames = torch.zeros(shape, dtype=torch.bool), shape[1]
    for frame in map(int, listed):
        if not -frames <= frame < frames:
            raise UserError(
                f"known frame {frame} is not there: frames are 0 to {frames - 1}, or -{frames} to -1 from the end"
            )
        mask[:, frame] = True
    return mask


def check_turns(rule: Sampler, guidance_interval: Any) -> None:
    """UserError where a frame schedule is impossible: with an ODE or SDE solver, or with a guidance interval."""
    if hasattr(rule, "solve"):
        raise UserError(
            f"{rule!r} carries all frames together, and frames that move in turn are for the rules "
            f"{', '.join(RULES)}: take one of these, or leave frame_schedule (--frame-schedule) out"
        )
    if guidance_interval is not None:
        raise UserError("guidance_interval is a part of a joint descent: leave it or frame_schedule out")


def check_fraction(name: str, value: Any) -> float:
    """`value` as a float in [0, 1); UserError, which calls it `name`, for anything else."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real) or not 0 <= value < 1:
        raise UserError(f"{name} is {value!r}; it must be a number of at least 0 and below 1")
    return float(value)


def as_size(size: Any) -> tuple[int, int]:
    """(height, width) of a size in pixels: a whole number, or two of them. UserError for anything else."""
    both = (size, size) if is_whole(size) else size
    if not isinstance(both, (tuple, list)) or len(both) != 2 or not all(map(is_whole, both)):
        raise UserError(f"size is {size!r}; it must be pixels, a whole number or (height, width)")
    return int(both[0]), int(both[1])


def fit_size(codec: Codec, patch_size: int, size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) in pixels.

    UserError unless both are multiples of the codec's downsampling times the patch size.
    """
    height, width = as_size(size)
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


def choose_sampler(settings: Mapping[str, Any], sampler: str | Sampler | None, chosen: Mapping[str, Any]) -> Sampler:
    """The sampler of a call: `sampler` by name, or that of the model's `settings` if it is None.

    Its numbers come from `chosen`, else from `settings`, else from the sampler's defaults. A sampler given as an object
    is returned unchanged. UserError for an unknown name, and for numbers that the sampler does not have.
    """
    if sampler is not None and not isinstance(sampler, str):
        if chosen:
            raise UserError(f"a sampler given as an object brings its own numbers: leave out {', '.join(chosen)}")
        return sampler
    kind = sampler or settings["kind"]
    if kind not in SAMPLERS:
        raise UserError(f"sampler {kind!r} is not one of {', '.join(SAMPLERS)}")
    names = {entry.name for entry in fields(SAMPLERS[kind])}
    if surplus := set(chosen) - names:
        raise UserError(f"sampler {kind!r} has no {' and no '.join(sorted(surplus))}: leave it out")
    # These step along the gradient, so that a step size serves all of them. Adam's step is a distance of its own.
    alike = {"gd", "nag", "langevin"}
    shared = kind == settings["kind"] or {kind, settings["kind"]} <= alike
    known = {name: value for name, value in settings.items() if name in names and (shared or name != "step_size")}
    try:
        return SAMPLERS[kind](**{**known, **chosen})
    except ValueError as error:
        raise UserError(str(error)) from error


def default_steps(settings: Mapping[str, Any], sampler: str | Sampler | None) -> int:
    """The steps of a descent by default: those of a model's `settings`, or the few of a sampler that needs no more.

    The settings are for the sampler that they name. Another sampler with a number of steps of its own (`few`) takes it.
    A rule that walks by a step size takes the paper's steps if the settings are for few, as its own step size is small.
    """
    own = SAMPLERS[settings["kind"]]
    kind = own if sampler is None else SAMPLERS.get(sampler) if isinstance(sampler, str) else type(sampler)
    if kind is own:
        return settings["steps"]
    if hasattr(own, "few") and hasattr(kind, "__dataclass_fields__") and "step_size" in kind.__dataclass_fields__:
        return WALK["steps"]
    return getattr(kind, "few", settings["steps"])


def own_walk(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    """The `steps` and the `step_size` of a model's descent, for studies that vary them.

    They are those of its `settings`; of the paper where the settings are for few steps. UserError for a solver.
    """
    if "step_size" in settings:
        return settings
    if hasattr(SAMPLERS[settings["kind"]], "few"):
        return WALK
    raise UserError(
        f"the model's own sampler {settings['kind']!r} has no step size: give one (--step-size 0.01 0.02, or --fixed "
        f"{settings['steps']}:0.01)"
    )


def step_gammas(
    decay: Decay | None,
    sampler: Sampler,
    steps: int,
    schedule: str | Callable[[int, int], float],
    start_gamma: float,
    known: Tensor | None,
    per_frame: bool = False,
    pull: float = 1.0,
) -> Tensor | None:
    """Gamma at each step (steps,), the input of a network that is conditioned on gamma.

    None for samplers that know gamma, such as ODE solvers, which pass their own. pull: the speed of a plain sum of
    fields, in units of a single field's. With NAG this is the gamma of the latents, while the field is evaluated at the
    look-ahead, mu steps further on: the network's input lags behind by at most 0.0036 (mu 0.3, 249 steps of 0.003).
    UserError where a descent has no single gamma (known frames, frames that stop or start by themselves), and for rules
    or models whose gamma is unknown.
    """
    if knows_gamma(sampler):
        return None
    if known is not None or per_frame:
        raise UserError(
            "this network is conditioned on gamma, and a descent has one gamma for all frames, so that it cannot hold "
            "some of them: use multistep, euler, heun or dopri5, or leave per_frame and frame_schedule out"
        )
    if decay is None or not isinstance(sampler, (GradientDescent, NAG)):
        raise UserError(
            f"this network needs gamma (conditioned_on_gamma: true), which a descent with {sampler!r} does not know: "
            "use multistep, euler, heun or dopri5, or gd or nag with a model that says its decay"
        )
    sizes = [pull * sampler.step_size * factor for factor in step_factors(schedule, steps)]
    return gamma_path(decay, sizes, steps, start_gamma)
