"""Known frames of a clip: the words of `--known` and `--keyframes`, and the frame numbers that they mean.

Forms are `0-3` (both ends counted), `first`, `last`, `ends` (first and last), `first:4`, `last:4`, and numbers
separated by commas, negative numbers counted from the end: `0-2,5,-1`. T is the number of frames of a clip.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eqm_video.errors import UserError

FORMS = "such as first, first:4, last:2, ends, 0-3, 0,-1 or 0-2,5,-1"
RANGE = re.compile(r"(-?\d+)(?:-(-?\d+))?")  # "5", "-1", "0-3", "-4--1"
WORD = re.compile(r"(first|last)(?::(\d+))?|ends")


@dataclass(frozen=True)
class KnownFrames:
    """The known frames as typed: ranges of frame numbers, both ends counted, negative numbers counted from the end."""

    text: str
    parts: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        return self.text

    def of(self, frames: int) -> list[int]:
        """The frame numbers in a clip of `frames` frames, ascending; UserError where a number is out of range."""
        known: set[int] = set()
        for first, last in self.parts:
            for number in (first, last):
                if not -frames <= number < frames:
                    raise UserError(
                        f"--known {self.text}: a clip has {frames} frames, so numbers go from 0 to {frames - 1} "
                        f"(or from -{frames} to -1, counted from the end)"
                    )
            low, high = first % frames, last % frames
            if low > high:
                raise UserError(
                    f"--known {self.text}: frame {low} comes after frame {high}; type the earlier one first"
                )
            known.update(range(low, high + 1))
        return check_known(sorted(known), frames, f"--known {self.text}")


def parse_known(text: str) -> KnownFrames:
    """The known frames that the text of `--known` means; UserError for any other text."""
    parts: list[tuple[int, int]] = []
    for piece in text.strip().split(","):
        if word := WORD.fullmatch(piece):
            count = int(word[2] or 1)
            if count < 1:
                raise UserError(f"--known: {piece!r} are no frames; give at least 1, such as {word[1]}:1")
            parts += [(0, count - 1)] if word[1] != "last" else [(-count, -1)]
            parts += [(-1, -1)] if piece == "ends" else []
        elif span := RANGE.fullmatch(piece):
            parts.append((int(span[1]), int(span[2] or span[1])))
        else:
            raise UserError(f"--known: {piece!r} is not a frame, or a range of frames, {FORMS}")
    return KnownFrames(text.strip(), tuple(parts))


def parse_keyframe(text: str) -> tuple[int, Path]:
    """(frame number, picture) of FRAME=IMAGE, a word of `--keyframes`; UserError for any other text."""
    frame, equals, path = text.strip().partition("=")
    if not equals or not path or not re.fullmatch(r"-?\d+", frame):
        raise UserError(f"--keyframes: {text.strip()!r} is not FRAME=IMAGE, such as 0=start.png or -1=end.png")
    return int(frame), Path(path)


def keyframes_of(typed: Sequence[tuple[int, Path]], frames: int) -> dict[int, Path]:
    """The pictures by frame number, ascending; UserError where a number is out of range or given twice."""
    pictures: dict[int, Path] = {}
    for number, path in typed:
        if not -frames <= number < frames:
            raise UserError(
                f"--keyframes {number}={path}: a clip has {frames} frames, so numbers go from 0 to {frames - 1} "
                f"(or from -{frames} to -1, counted from the end)"
            )
        if (frame := number % frames) in pictures:
            raise UserError(f"--keyframes gives frame {frame} twice, {pictures[frame]} and {path}: give it once")
        pictures[frame] = path
    check_known(sorted(pictures), frames, "--keyframes")
    return dict(sorted(pictures.items()))


def check_known(known: list[int], frames: int, what: str) -> list[int]:
    """`known` itself; UserError, which begins with `what`, if no frame is left to sample."""
    if len(known) == frames:
        many = "the only frame is" if frames == 1 else f"all {frames} frames are"
        raise UserError(
            f"{what}: {many} known, so that nothing is left to sample; name fewer frames, or give more --frames"
        )
    return known


def name_frames(known: Sequence[int]) -> str:
    """Ascending frame numbers as ranges: "0-3, 7"."""
    runs: list[list[int]] = []
    for frame in known:
        if runs and frame == runs[-1][-1] + 1:
            runs[-1].append(frame)
        else:
            runs.append([frame])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs)
