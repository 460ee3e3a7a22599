"""The command line, `python -m eqm_video COMMAND ...`: each command is a module with main(arguments) -> int | None."""

from __future__ import annotations

import difflib
import importlib
import io
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.metadata import version

from eqm_video.errors import UserError, cut

# name: (module, what it does), imported when it is called
COMMANDS = {
    "train": ("eqm_video.cli.train", "train a model from a recipe (train_video.py)"),
    "sample": ("eqm_video.cli.sample", "sample clips or images from a trained model (sample_video.py)"),
    "compare": ("eqm_video.cli.compare", "samples against data: nearest clips, and a Fréchet distance"),
    "descent": ("eqm_video.cli.descent", "gradient, energy and frames along a descent, of one model or two"),
    "sweep": ("eqm_video.cli.sweep", "quality over number of steps, step size and sampler"),
    "adaptive": ("eqm_video.cli.adaptive", "stop clips when they rest: evaluations, time and quality"),
    "curvature": ("eqm_video.cli.curvature", "curl and largest curvature of a field, and the steps that it bears"),
    "partial": ("eqm_video.cli.partial", "denoise clips that start between noise and data"),
    "ood": ("eqm_video.cli.ood", "tell clips that are unlike the training data, frame by frame"),
    "compose": ("eqm_video.cli.compose", "several labels, or several models, in one sample"),
    "oracle": ("eqm_video.cli.oracle", "every video task along the exact field of a few clips, without any training"),
    "plane": ("eqm_video.cli.plane", "flow matching and Equilibrium Matching in two dimensions"),
    "predict": ("eqm_video.cli.predict", "hidden frames of real clips: predictions against what they were"),
    "tasks": ("eqm_video.cli.tasks", "train and compare draws of gamma: every video task on endless moving shapes"),
    "ablate": ("eqm_video.cli.ablate", "train and compare objectives, decays and samplers on moving shapes"),
    "convert": ("eqm_video.cli.convert", "convert weights of the reference EqM or SiT code"),
    "demo": ("eqm_video.cli.demo", "write moving shapes, train on them, sample, measure"),
    "reconstruct": ("eqm_video.cli.reconstruct", "put your data through a codec and back, before any training"),
    "train-codec": ("eqm_video.cli.train_codec", "train the small autoencoder that ships with the package"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status: 2, and one line on stderr, for a user's mistake."""
    for stream in (sys.stdout, sys.stderr):  # a name that is not UTF-8 is printed all the same
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    name, *rest = list(sys.argv[1:] if arguments is None else arguments) or [""]
    if name in ("-h", "--help", ""):
        width = max(map(len, COMMANDS))
        print("usage: python -m eqm_video COMMAND ...   (COMMAND --help tells more)\n")
        print("\n".join(f"  {command:{width}}  {text}" for command, (_, text) in COMMANDS.items()))
        return 0 if name else 2
    if name == "--version":
        print(f"eqm-video {version('eqm-video')}")
        return 0
    try:
        if name not in COMMANDS:
            near = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.4)
            hint = f"did you mean {near[0]}? " if near else ""
            raise UserError(f"unknown command {name!r}; {hint}commands: {', '.join(COMMANDS)}")
        with warnings.catch_warnings():
            warnings.showwarning = _warn
            return importlib.import_module(COMMANDS[name][0]).main(rest) or 0
    except UserError as error:
        return _fail(str(error))
    except OSError as error:  # a full disk, a folder that vanished, a file that may not be read
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


def _is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that memory could not be had: Python's and numpy's, or torch's on a CPU or a GPU."""
    text = str(error)
    return isinstance(error, MemoryError) or "DefaultCPUAllocator" in text or "out of memory" in text


def _warn(message: Warning | str, *unused: object) -> None:
    """Say a warning as a sentence, without the line of code that it comes from."""
    from tqdm import tqdm

    tqdm.write(f"warning: {message}", file=sys.stderr)  # above a progress bar, not behind it


def _fail(sentence: str) -> int:
    """Say what went wrong, and in which process where there are several; returns the exit status."""
    rank = os.environ.get("RANK", "0")
    print(f"error: {sentence}" if rank == "0" else f"error (process {rank}): {sentence}", file=sys.stderr, flush=True)
    return 2
