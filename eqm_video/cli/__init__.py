"""The command line, `eqm-video COMMAND ...`: a command is chosen and run, and a mistake becomes one line on stderr."""

from __future__ import annotations

import contextlib
import difflib
import io
import json
import logging
import os
import select
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path

from eqm_video.cli import quick
from eqm_video.commands import COMMANDS, GROUPS
from eqm_video.errors import UserError
from eqm_video.options import QUIET
from eqm_video.system.memory import is_out_of_memory, out_of_memory

READER_LEFT = 141  # the exit status that a shell gives a process whose output nobody reads: 128 + SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns the exit status. A user's mistake is 2, with one line on stderr."""
    for stream in (sys.stdout, sys.stderr):  # file names need not be UTF-8: print them, with escapes
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or [""]
    try:
        status = _run(name, rest)
        if sys.stdout is not None:
            sys.stdout.flush()  # now: at exit Python would answer a failure with a traceback
        return status
    except UserError as error:
        return _fail(str(error))
    except OSError as error:  # a full disk, a folder that vanished, a file that may not be read
        if isinstance(error, BrokenPipeError) and _reader_left():
            return READER_LEFT
        what = error.strerror or str(error) or type(error).__name__
        return _fail(f"{what}: {error.filename}" if error.filename else what)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return _fail(out_of_memory(error, "ask for fewer frames, a smaller size or fewer samples at once"))
    except KeyboardInterrupt as interrupt:  # some commands say in it how to go on
        print("; ".join(["interrupted", *map(str, interrupt.args)]), file=sys.stderr)
        return 130


def _run(name: str, words: Sequence[str]) -> int:
    """Run the command `name` with the words after it; returns the exit status. UserError for an unknown command."""
    if name in ("-h", "--help", ""):
        print(_overview())
        return 0 if name else 2
    if name == "--version":
        print(f"eqm-video {version('eqm-video')}")
        return 0
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise UserError(f"unknown command {name!r}; {hint}commands: {', '.join(COMMANDS)}")
    silent, words = QUIET in words, [word for word in words if word != QUIET]
    with warnings.catch_warnings():
        warnings.showwarning = _warn
        if "torch" not in sys.modules:  # else the true command answers as quickly
            quick.answer(name, words)
        from eqm_video.system import waits

        with waits.quiet(silent), _quiet_downloads(silent), _short_retries():
            return COMMANDS[name].run(words)


@contextlib.contextmanager
def _quiet_downloads(silent: bool) -> Iterator[None]:
    """A block in which the hub shows no bars of downloads if `silent` is true."""
    if not silent:
        yield
        return
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            enable_progress_bars()


@contextlib.contextmanager
def _short_retries() -> Iterator[None]:
    """A block in which a hub that does not answer is announced in one line, in place of two for each of its tries."""
    logger, announced = logging.getLogger("huggingface_hub.utils._http"), []

    def rewrite(record: logging.LogRecord) -> bool:
        from eqm_video.system import waits

        said = record.getMessage()
        if "Retrying in" in said and not announced:
            announced.append(said)
            waits.say("the Hugging Face hub does not answer: it is asked again for half a minute", sys.stderr)
        return "Retrying in" not in said and "thrown while requesting" not in said

    logger.addFilter(rewrite)
    try:
        yield
    finally:
        logger.removeFilter(rewrite)


def _overview() -> str:
    """All commands, a line each, by group."""
    width = max(map(len, COMMANDS))
    lines = ["usage: eqm-video COMMAND ...   (COMMAND --help tells more)"]
    for group, title in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:{width}}  {command.says}" for name, command in COMMANDS.items() if command.group == group]
    return "\n".join(lines)


def _reader_left() -> bool:
    """Whether nobody reads the output any more, as after `| head`. The rest of it then goes nowhere, silently."""
    left = False
    for stream in filter(None, (sys.stdout, sys.stderr)):
        poll = select.poll()
        poll.register(stream.fileno(), 0)  # 0: errors alone
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            left = True
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())  # Python flushes once more at exit
            os.close(nowhere)
    return left


def _warn(message: Warning | str, *unused: object) -> None:
    """Print a warning as a sentence, without the line of code that raised it."""
    from eqm_video.system import waits

    waits.say(f"warning: {message}", sys.stderr)


def _fail(sentence: str) -> int:
    """Print the error, with the number of the process if there are several; returns the exit status."""
    rank = os.environ.get("RANK", "0")
    print(f"error: {sentence}" if rank == "0" else f"error (process {rank}): {sentence}", file=sys.stderr, flush=True)
    _tell_launcher(f"error: {sentence}")
    return 2


def _tell_launcher(sentence: str) -> None:
    """Put the sentence at the end of torchrun's report, and announce that, or the traceback of `accelerate launch`.

    Both launchers report that a process failed in many lines below its own error.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is not None:
        with contextlib.suppress(OSError):  # the sentence is on the screen already
            Path(file).write_text(json.dumps({"message": sentence, "timestamp": int(time.time())}), encoding="utf-8")
        if os.environ.get("RANK", "0") == "0":
            print("(the launcher's report follows; the error above stands at its end)", file=sys.stderr, flush=True)
    elif "ACCELERATE_MIXED_PRECISION" in os.environ:  # which `accelerate launch` sets
        print(
            "(the traceback below is accelerate's own: this process ended; `accelerate launch -q` leaves it out)",
            file=sys.stderr,
            flush=True,
        )
