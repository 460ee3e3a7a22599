"""The keywords of a call that diffusers' pipelines have under other names, or in other forms.

Shapes: B samples, T frames, H W pixels.
"""

from __future__ import annotations

import difflib
import functools
import inspect
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from eqm_video.errors import UserError, short

ALIASES = {"num_inference_steps": "steps", "image": "clips", "video": "clips", "callback_on_step_end": "callback"}
ELSEWHERE = {  # names of arguments in other pipelines, and here
    "prompt": "labels",
    "class_labels": "labels",
    "num_images_per_prompt": "num_samples",
    "num_videos_per_prompt": "num_samples",
    "height": "size=(height, width)",
    "width": "size=(height, width)",
    "frame_rate": "fps",
    "strength": "start_gamma (1 - strength)",
    "latents": "clips (with start_gamma or known), or seeds for other noise",
}
FORMS = {  # the shapes of an array and of a tensor, for one and for many
    "image": ("(H, W, 3) or (B, H, W, 3)", "(3, H, W) or (B, 3, H, W)"),
    "video": ("(T, H, W, 3) or (B, T, H, W, 3)", "(T, 3, H, W) or (B, T, 3, H, W)"),
}


def explain_keywords(call: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap `call`: keywords of diffusers' pipelines become those of this one (`translated`).

    return_dict: False gives the output's fields as a tuple, the frames first. A keyword that only other pipelines have
    raises a TypeError that names the keyword of this one; an unknown one names the nearest.
    """

    @functools.wraps(call)
    def checked(*arguments: Any, return_dict: bool = True, **keywords: Any) -> Any:
        keywords = translated(arguments[0], keywords)
        known = [*inspect.signature(checked).parameters, *ALIASES]
        for wrong in keywords:
            if wrong in ELSEWHERE:
                raise TypeError(f"{wrong} is no argument of this pipeline: it is called {ELSEWHERE[wrong]} here")
            if wrong not in known:
                near = difflib.get_close_matches(wrong, known, n=1, cutoff=0.6)
                hint = f"did you mean {near[0]}?" if near else f"its arguments are {', '.join(known[1:])}"
                raise TypeError(f"{wrong} is no argument of this pipeline: {hint}")
        output = call(*arguments, **keywords)
        return output if return_dict else output.to_tuple()

    return checked


def translated(pipeline: Any, keywords: dict[str, Any]) -> dict[str, Any]:
    """The keywords of a call with those of diffusers' pipelines as this one's; TypeError where both are given.

    num_inference_steps: `steps`, the updates of the descent. image: a picture, or one for each sample, in `clips`: the
    first frame. video: the frames of one video, or a list of videos, in `clips`. Both take what `pictures` takes.
    callback_on_step_end(pipeline, step, timestep, tensors): `callback`, with "latents" and "gradient" as tensors, or
    those of callback_on_step_end_tensor_inputs; the timestep is the step, since the field knows no time. It may not
    return other latents (UserError): the loop keeps its own.
    """
    result = dict(keywords)
    inputs = result.pop("callback_on_step_end_tensor_inputs", None)
    chosen = {theirs: value for theirs in ALIASES if (value := result.pop(theirs, None)) is not None}
    taken = {ours for ours in ALIASES.values() if result.get(ours) is not None}
    for theirs in chosen:
        if ALIASES[theirs] in taken:
            raise TypeError(f"{theirs} is called {ALIASES[theirs]} here, and both are given: leave one of them out")
        taken.add(ALIASES[theirs])
    for theirs, value in chosen.items():
        if theirs == "num_inference_steps":
            warnings.warn("num_inference_steps is called steps here: the updates of the descent", stacklevel=4)
        elif theirs in FORMS:
            value = pictures(theirs, value)
        elif theirs == "callback_on_step_end":
            value = _step_end(pipeline, value, inputs or ("latents",))
        result[ALIASES[theirs]] = value
    return result


def pictures(name: str, value: Any) -> Any:
    """The value of `image` or `video` in Pillow's pictures, in a form that `clips` takes.

    Each is a picture, an array with channels last, a tensor with channels first, or a list of these. Numbers are uint8,
    or floating point in [0, 1], as pipelines return them. image: the picture, or a list of them. video: a list of
    videos, each a list of frames. UserError for anything else, with `name` in the sentence.
    """
    made = _as_pictures(name, value)
    if name == "image":
        flat = made if isinstance(made, list) else [made]
        if not flat or any(isinstance(item, list) for item in flat):
            raise UserError(f"image is {_shown(value)}: give a picture, or a list of them, one for each sample")
        return made
    videos = made if isinstance(made, list) and made and isinstance(made[0], list) else [made]
    frames = [frame for video in videos for frame in (video if isinstance(video, list) else [video, None])]
    if not frames or not all(isinstance(frame, Image.Image) for frame in frames):
        raise UserError(f"video is {_shown(value)}: give the frames of a video as a list, or a list of such lists")
    return videos


def _as_pictures(name: str, value: Any) -> Any:
    """A picture, or pictures nested in lists as the value's are."""
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, (list, tuple)):
        return [_as_pictures(name, item) for item in value]
    if not isinstance(value, (np.ndarray, Tensor)):
        hint = "; open a file with PIL.Image.open" if isinstance(value, str) else ""
        raise UserError(f"{name} is {short(value)}: give pictures of Pillow, arrays or tensors{hint}")
    array = _channels_last(value) if isinstance(value, Tensor) else value
    last, first = FORMS[name]
    if not 3 <= array.ndim <= 5 or array.shape[-1] != 3:
        raise UserError(f"{name} is {_shown(value)}: an array must be {last}, a tensor {first}")
    return _nested(_as_bytes(name, array))


def _channels_last(tensor: Tensor) -> np.ndarray:
    """A tensor (..., 3, H, W) as an array (..., H, W, 3); half precision becomes float32."""
    values = tensor.detach().cpu()
    values = values.float() if values.is_floating_point() else values
    return (values.movedim(-3, -1) if values.ndim >= 3 else values).numpy()


def _as_bytes(name: str, array: np.ndarray) -> np.ndarray:
    """An array of uint8, or of floating point in [0, 1], as uint8; UserError for other numbers."""
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"{name} has numbers of {array.dtype}: give uint8, or floating point in [0, 1]")
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    if not (low >= 0 and high <= 1):
        raise UserError(f"{name} has numbers from {low:g} to {high:g}: floating point must lie in [0, 1]")
    return np.rint(array * 255).astype(np.uint8)


def _nested(array: np.ndarray) -> Any:
    """Pictures of an array (..., H, W, 3) uint8, in lists nested as its first dimensions."""
    return Image.fromarray(np.ascontiguousarray(array)) if array.ndim == 3 else [_nested(item) for item in array]


def _shown(value: Any) -> str:
    """A value as a few words: type and shape of an array, the length of a list."""
    if hasattr(value, "shape"):
        return f"{type(value).__name__} {tuple(value.shape)}"
    return f"a list of {len(value)}" if isinstance(value, (list, tuple)) else type(value).__name__


def _step_end(pipeline: Any, function: Callable[..., Any], inputs: Sequence[str]) -> Callable[..., None]:
    """A `callback` that calls a function with the arguments of diffusers' callback_on_step_end."""
    if unknown := set(inputs) - {"latents", "gradient"}:
        raise UserError(f"callback_on_step_end_tensor_inputs has {sorted(unknown)}: give some of latents, gradient")

    def callback(step: int, latents: Any, gradient: Any) -> None:
        tensors = {"latents": latents, "gradient": gradient}
        changed = function(pipeline, step, step, {name: tensors[name] for name in inputs})
        if isinstance(changed, Mapping) and changed.get("latents", latents) is not latents:
            raise UserError("callback_on_step_end returned other latents: a descent goes on from its own, change none")

    return callback
