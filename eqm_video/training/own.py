"""`eqm-video train own FOLDER`: the recipe for somebody's own videos, and clips that nearly all of them can give.

The recipe is picked by the device and the number of videos, before any is opened. The clips are picked by the lengths
of the videos, which the first look at them counts.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator

from eqm_video.data.buckets import Bucket
from eqm_video.data.datasets import open_data
from eqm_video.data.layout import EXTENSIONS, find_lists, list_files
from eqm_video.training.config import ALIASES, Config, HeldOutConfig, load_config
from eqm_video.training.data import open_split
from eqm_video.training.resume import recorded_config
from eqm_video.wording import counted

FEW = 100  # videos: a smaller set is memorised long before the steps of a large one are done
HOLDABLE = 20  # videos: of fewer than that none is held out
SPARE = 20  # one in so many videos may be too short for the clips
FEWEST = 2  # frames of a clip that is a video
GPU, CPU = "own_videos", "own_videos_cpu"
STEPS = {(GPU, True): 20_000, (GPU, False): 100_000, (CPU, True): 4000, (CPU, False): 12_000}  # (recipe, few videos)


@dataclass(frozen=True)
class Choice:
    """A recipe by name, the values that are picked for it, and the user's own overrides, which come last."""

    recipe: str
    picked: dict[str, str]
    changes: tuple[str, ...]
    reasons: str = ""  # of the recipe, in words
    withheld: str = ""  # the held-out videos, in words
    clips: str = ""  # a sentence about the clips, once they are picked

    @property
    def theirs(self) -> dict[str, str]:
        """The user's own values by key."""
        pairs = (word.split("=", 1) for word in self.changes if "=" in word)
        return {ALIASES.get(key, key): value for key, value in pairs}

    @property
    def overrides(self) -> list[str]:
        """All values as `section.key=value`, without those of the picked ones that the user replaces."""
        return [f"{key}={value}" for key, value in self.picked.items() if key not in self.theirs] + [*self.changes]

    @property
    def said(self) -> str:
        """The choice and its reasons, and the line to type for the same run."""
        clips = f"\n{self.clips}" if self.clips else ""
        return (
            f"{self.reasons}, {self.withheld}{clips}; the same as\n"
            f"  eqm-video train --config {self.recipe} {shlex.join(self.overrides)}"
        )

    def config(self) -> Config:
        """The recipe with all values; UserError where it makes no sense."""
        return load_config(self.recipe, self.overrides)


def choose(folder: Path, changes: Sequence[str] = (), on_gpu: bool | None = None) -> Choice:
    """The recipe for the videos in a folder; UserError where there are none. Files are counted, not opened.

    changes: the user's own overrides, which come last and replace those that are picked here. on_gpu: whether there is
    a GPU; None looks for one.
    """
    kind = Choice("", {}, tuple(changes)).theirs.get("data.kind", "videos")
    kind = kind if kind in EXTENSIONS else "videos"  # what is no kind is refused with the recipe
    count = len(list_files(kind, folder).names)
    on_gpu = torch.cuda.is_available() or torch.backends.mps.is_available() if on_gpu is None else on_gpu
    recipe, few = (GPU if on_gpu else CPU), count < FEW
    picked = {"data.root": str(folder), "run.dir": f"runs/{folder.resolve().name}"}
    picked["train.steps"] = str(STEPS[recipe, few])
    picked["data.latents"] = "auto"  # in memory where the frames fit and are encoded less often that way
    choice = Choice(recipe, picked, tuple(changes))
    theirs, withheld = choice.theirs, "nothing held out"
    if _holds_out(theirs):
        withheld = "held out as you say"
    elif find_lists(folder) is not None:
        picked |= {"data.split": "train", "held_out.split": "test"}
        withheld = "the test list held out"
    elif count >= HOLDABLE:
        picked["held_out.fraction"] = "0.1"
        withheld = "a tenth of them held out"
    steps = theirs.get("train.steps", picked["train.steps"])
    steps = "1 step" if steps == "1" else f"{int(steps):,} steps" if steps.isdecimal() else f"{steps} steps"
    device = "a GPU" if on_gpu else "no GPU"
    reasons = f"{counted(count, kind[:-1])} and {device}: recipe {recipe}, {steps}"
    return replace(choice, reasons=reasons, withheld=withheld)


def _holds_out(theirs: Mapping[str, str]) -> bool:
    """Whether the user's own values say what is held out."""
    return any(f"held_out.{source}" in theirs for source in HeldOutConfig.SOURCES)


def as_begun(choice: Choice, checkpoint: Path) -> Choice:
    """The choice with the share of held-out videos that a run began with: it goes on from `checkpoint`.

    The number of videos, by which the share was picked, may be another by now.
    """
    then = recorded_config(checkpoint).held_out.fraction
    picked = {key: value for key, value in choice.picked.items() if key != "held_out.fraction"}
    if then is not None:
        picked["held_out.fraction"] = str(then)
    if _holds_out(choice.theirs) or "held_out.split" in picked or picked == choice.picked:
        return choice
    return replace(choice, picked=picked, withheld="held out as when it began")


def with_clips(choice: Choice, accelerator: Accelerator | None = None, checkpoint: Path | None = None) -> Choice:
    """The choice with frames and interval of its clips, picked so that nearly all videos are long enough for them.

    Values of the user stay, and so do those that a run began with: it goes on from `checkpoint`. The videos are looked
    at, by the main process, which keeps the result in the run's folder. Without an `accelerator` nothing is kept.
    UserError where no video can be read.
    """
    config, theirs = choice.config(), choice.theirs
    data, wanted = config.data, Bucket(config.data.frames, config.data.frame_interval)
    kept = {key for key in ("frames", "frame_interval") if f"data.{key}" in theirs}
    if len(kept) == 2 or theirs.keys() & {"data", "data.buckets", "data.kind", "data.root"} or data.frames < FEWEST:
        return choice
    if checkpoint is not None:
        then = recorded_config(checkpoint).data
        return _with(choice, Bucket(then.frames, then.frame_interval), "")
    whole = replace(data, frames=1, frame_interval=1, short="repeat")  # no video is too short for it
    if accelerator is None:
        root = Path(data.root).expanduser()
        videos = open_data(root=root, split=data.split, fold=data.fold, frames=1, frame_interval=1, size=data.size)
    else:
        videos = open_split(replace(config, data=whole), data.split, accelerator)
    lengths = [info.frames for _, _, info in videos.files]
    spare = 0 if data.short == "error" else round(len(lengths) / SPARE)
    clip = fit(lengths, wanted, spare, **{f"keep_{key}": True for key in kept})
    return _with(choice, clip, reasons_of(clip, wanted, lengths, data.short))


def fit(
    lengths: Sequence[int],
    wanted: Bucket,
    spare: int = 0,
    *,
    keep_frames: bool = False,
    keep_frame_interval: bool = False,
) -> Bucket:
    """The clips nearest to `wanted` for videos of `lengths` frames, of which `spare` may be too short.

    The interval shrinks first, to 1 at least: fewer frames would take known frames and long motion from the model, a
    smaller interval only makes motion slower. Then the clips have fewer frames, 2 at least.
    """
    reach = sorted(lengths)[spare]  # source frames that nearly all videos have
    frames, interval = wanted.frames, wanted.frame_interval
    if not keep_frame_interval:
        interval = min(interval, max(1, (reach - 1) // (frames - 1)))
    if not keep_frames:
        frames = min(frames, max(FEWEST, (reach - 1) // interval + 1))
    return Bucket(frames, interval)


def reasons_of(clip: Bucket, wanted: Bucket, lengths: Sequence[int], short: str) -> str:
    """A sentence: the clips, why they are not `wanted`, how many videos are too short for them, and how to set them."""
    text = f"clips of {_spelled(clip)}"
    if clip != wanted:
        shorter = _some([length < wanted.span for length in lengths], "has", "have")
        text += f", because {_spelled(wanted)} would span {wanted.span} frames of a video, and {shorter} fewer"
    lacking = [length < clip.span for length in lengths]
    if short == "skip":
        fate = _some(lacking, "is shorter and left out", "are shorter and left out")
    else:
        fate = _some(lacking, "is shorter and has its last frame held", "are shorter and have their last frame held")
    text += f"; {fate if any(lacking) else 'every video is long enough for these'}"
    other = wanted if max(lengths) >= wanted.span else Bucket(max(FEWEST, clip.frames // 2), clip.frame_interval)
    if other == clip:
        return text
    return f"{text}; for other clips type data.frames={other.frames} data.frame_interval={other.frame_interval}"


def _some(flags: Sequence[bool], singular: str, plural: str) -> str:
    """The number of flagged videos, with a verb: `1 of 3 videos has`, `all 3 videos have`."""
    count, number = len(flags), sum(flags)
    if count == 1:
        return f"the video {singular}"
    which = f"all {count} videos" if number == count else f"{number} of {count} videos"
    return f"{which} {singular if number == 1 else plural}"


def _spelled(clip: Bucket) -> str:
    step = "in a row" if clip.frame_interval == 1 else f"at data.frame_interval={clip.frame_interval}"
    return f"{clip.frames} frames {step}"


def _with(choice: Choice, clip: Bucket, said: str) -> Choice:
    picked = choice.picked | {"data.frames": str(clip.frames), "data.frame_interval": str(clip.frame_interval)}
    return replace(choice, picked=picked, clips=said)
