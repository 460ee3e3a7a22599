"""The command line, `eqm-video COMMAND ...`: a few commands of its own, and every study by its name.

Studies are found by reading the folder `studies`, without importing it: a class with `group="look"` in studies/NAME.py
or studies/NAME/study.py is the command NAME, and the list of commands shows the first line of its docstring.
"""

from __future__ import annotations

import ast
import contextlib
import difflib
import importlib
import io
import json
import os
import re
import select
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from eqm_video.cli import quick
from eqm_video.errors import UserError, cut
from eqm_video.options import QUIET

GROUPS = {"use": "make and use models", "look": "look into one", "compare": "compare many"}
STUDIES = Path(__file__).resolve().parents[1] / "studies"
READER_LEFT = 141  # the exit status that a shell gives a process whose output nobody reads: 128 + SIGPIPE

STUDY = re.compile(
    r'^class \w+\([^)]*\bgroup="[^)]*\):\n    """.*?"""', re.DOTALL | re.MULTILINE
)  # from `class` to the end of its docstring


class Command(NamedTuple):
    """A command: its module and the class of its options there, its group, and a line that says what it does.

    study: whether the class is a study, which runs by itself; else the module has a function `main`.
    """

    module: str
    class_name: str
    group: str
    says: str
    study: bool = False

    def main(self) -> Callable[[Sequence[str]], int | None]:
        """The function that runs the command. It takes the words after the command's name."""
        return self.options().main if self.study else importlib.import_module(self.module).main

    def options(self) -> Any:
        """The class of the command's options."""
        return getattr(importlib.import_module(self.module), self.class_name)


def _studies() -> Iterator[tuple[str, Command]]:
    """Every study with the name of its command. Files are parsed, not imported: the list must be quick."""
    for path in sorted([*STUDIES.glob("*.py"), *STUDIES.glob("*/study.py")]):
        inside = path.relative_to(STUDIES).with_suffix("").parts
        for match in STUDY.finditer(path.read_text(encoding="utf-8")):
            (node,) = ast.parse(match[0]).body
            group = next(ast.literal_eval(word.value) for word in node.keywords if word.arg == "group")
            first = ast.get_docstring(node).partition("\n")[0].rstrip(".")
            module = ".".join(("eqm_video.studies", *inside))
            says = first[0].lower() + first[1:]
            yield inside[0].replace("_", "-"), Command(module, node.name, group, says, study=True)


COMMANDS = {
    "train": Command("eqm_video.training.launch", "TrainOptions", "use", "train a model from a recipe"),
    "cache": Command(
        "eqm_video.training.cache", "CacheOptions", "use", "encode the clips of a recipe once and keep them on disk"
    ),
    "sample": Command("eqm_video.sampling.launch", "SampleOptions", "use", "sample clips or images from a model"),
    "recipes": Command("eqm_video.cli.recipes", "RecipesOptions", "use", "list the recipes that ship with the package"),
    "explain": Command("eqm_video.cli.explain", "Explain", "use", "say what a key of a recipe means"),
    "records": Command(
        "eqm_video.cli.records", "RecordsOptions", "compare", "keep results as records, write documents from them"
    ),
    "doctor": Command(
        "eqm_video.cli.doctor", "DoctorOptions", "use", "look at this machine, and whether a recipe fits it"
    ),
    "completion": Command(
        "eqm_video.cli.completion", "CompletionOptions", "use", "complete commands and options in bash and zsh"
    ),
    "page": Command("eqm_video.page.launch", "PageOptions", "use", "show a model on a web page"),
    "push": Command("eqm_video.cli.push", "Push", "use", "share a model on the Hugging Face hub"),
    "convert": Command("eqm_video.cli.convert", "Convert", "use", "convert weights of the reference EqM or SiT code"),
} | dict(_studies())


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
        if not _is_out_of_memory(error):
            raise
        first = cut(str(error).strip().partition("\n")[0], 200)
        return _fail(f"out of memory: {first}; ask for fewer frames, a smaller size or fewer samples at once")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
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

        with waits.quiet(silent):
            return COMMANDS[name].main()(words) or 0


def _overview() -> str:
    """All commands, a line each, by group."""
    width = max(map(len, COMMANDS))
    lines = ["usage: eqm-video COMMAND ...   (COMMAND --help tells more)"]
    for group, title in GROUPS.items():
        lines += ["", f"{title}:"]
        lines += [f"  {name:{width}}  {command.says}" for name, command in COMMANDS.items() if command.group == group]
    return "\n".join(lines)


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an error means that memory ran out: Python's and numpy's MemoryError, or torch's on a CPU or a GPU."""
    text = str(error)
    return isinstance(error, MemoryError) or "DefaultCPUAllocator" in text or "out of memory" in text


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
    """Put the sentence at the end of torchrun's report; announce the traceback of `accelerate launch`, which has none.

    Both launchers report that a process failed in many lines below its own error.
    """
    file = os.environ.get("TORCHELASTIC_ERROR_FILE")
    if file is not None:
        with contextlib.suppress(OSError):  # the sentence is on the screen already
            Path(file).write_text(json.dumps({"message": sentence, "timestamp": int(time.time())}), encoding="utf-8")
    elif "ACCELERATE_MIXED_PRECISION" in os.environ:  # which `accelerate launch` sets
        print(
            "(the traceback below is accelerate's own: this process ended; `accelerate launch -q` leaves it out)",
            file=sys.stderr,
            flush=True,
        )
