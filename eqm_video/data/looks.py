"""The inspection of a file, and the child process that performs it.

Decoders are native code: a damaged file may end the process that opens it, or keep it busy for ever. Therefore
`children.py` runs `serve` in child processes, sends them files, and goes on when a child ends. Children start in a
fraction of a second, because this module does not import torch.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import astuple
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from eqm_video.data.image import decode_image, probe_image
from eqm_video.data.video import VideoDecodeError, VideoInfo, probe

READY = b"ready\n"


def look_at_video(path: Path) -> VideoInfo:
    """The info of a video, see `probe`; VideoDecodeError also for a file that was cut short."""
    info = probe(path)
    if info.truncated:
        raise VideoDecodeError(
            f"{path}: truncated, {info.frames} of the {info.declared} frames in its header are there"
        )
    return info


LOOKS: dict[str, Callable[[Path], Any]] = {
    "video": look_at_video,
    "image": decode_image,
    "image header": probe_image,
}


def request(look: str, path: Path, seconds: float) -> bytes:
    """The line that makes `serve` inspect a file; the process ends itself if it takes much longer than `seconds`."""
    name = os.fsencode(path).decode("latin-1")  # any bytes, in any locale
    return json.dumps([look, name, seconds]).encode("ascii") + b"\n"


def serve() -> None:
    """Answer requests from standard input until it ends, a line of JSON each: [values, ""] or [null, reason]."""
    for number in (signal.SIGINT, signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)):
        signal.signal(number, signal.SIG_IGN)  # meant for the parent, which ends this process
    _die_quietly()
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    answers.write(READY)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):  # hide the output of decoders
        os.dup2(nowhere, number)
    for line in sys.stdin.buffer:
        look, name, seconds = json.loads(line)
        path = Path(os.fsdecode(name.encode("latin-1")))
        sys.excepthook = _say_in(answers, path)
        with _deadline(seconds):
            answers.write(_answer(LOOKS[look], path))


def _answer(look: Callable[[Path], Any], path: Path) -> bytes:
    try:
        content = [astuple(look(path)), ""]
    except VideoDecodeError as error:
        content = [None, _reason(str(error), path)]
    return json.dumps(content).encode("ascii") + b"\n"


def _reason(text: str, path: Path) -> str:
    return text.removeprefix(f"{path}: ")


def _say_in(answers: BinaryIO, path: Path) -> Callable[..., None]:
    """A hook for unexpected exceptions: it answers for the current file with the error; then this process ends."""

    def say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        reason = f"the decoder fails ({kind.__name__}: {_reason(str(error), path)})"
        answers.write(json.dumps([None, reason]).encode("ascii") + b"\n")

    return say


@contextmanager
def _deadline(seconds: float) -> Iterator[None]:
    """An alarm that ends this process, in native code too, in case its parent is gone."""
    if hasattr(signal, "alarm"):
        signal.alarm(int(seconds) + 30)
    yield
    if hasattr(signal, "alarm"):
        signal.alarm(0)


def _die_quietly() -> None:
    """Let a crash leave no core file, and make Linux end this process first if a file fills the memory."""
    with suppress(ImportError, OSError, ValueError):  # not available on every system
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w", encoding="ascii") as file:
        file.write("1000")
