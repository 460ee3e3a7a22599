"""The command `completion`: a script by which a shell completes commands, options and their values."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import shtab

from eqm_video import options
from eqm_video.cli import quick
from eqm_video.commands import COMMANDS
from eqm_video.options import Declared, option
from eqm_video.training import recipes


@dataclass(frozen=True, kw_only=True)
class CompletionOptions:
    """Print a script that completes commands, options and their values in a shell.

    bash: add the line `eval "$(eqm-video completion bash)"` to ~/.bashrc. zsh: add `eval "$(eqm-video completion zsh)"`
    to ~/.zshrc, below the line with compinit. A new shell knows it; nothing of eqm-video runs while you type.
    """

    shell: Literal["bash", "zsh"] = option(positional=True, metavar="SHELL", help="bash or zsh")


def main(words: Sequence[str]) -> int:
    """Print the script; returns the exit status. UserError for another shell."""
    chosen = options.parse(CompletionOptions, words, prog="eqm-video completion")
    print(shtab.complete(every_command(), chosen.shell))
    return 0


def every_command() -> argparse.ArgumentParser:
    """A parser with all commands and options, from which the script is made."""
    whole = argparse.ArgumentParser(prog="eqm-video")
    commands = whole.add_subparsers()
    for name, command in COMMANDS.items():
        cls = quick.rebuild(quick.stored()[name]["class"])
        made, entries = options.parser(cls, prog=f"eqm-video {name}"), options.declared(cls)
        for action in made._actions:
            if action.dest in entries:
                _complete(action, entries[action.dest])
        for flag in getattr(cls, "elsewhere", ()):  # read by the command itself, beside its options
            made.add_argument(flag, metavar="FOLDER").complete = shtab.DIRECTORY
        commands.add_parser(name, help=command.says, parents=[made], add_help=False)
    return whole


def _complete(action: argparse.Action, entry: Declared) -> None:
    """Tell shtab which values an option can have: its choices, the names of recipes, or files."""
    if entry.option.choices or entry.option.words:
        action.choices = [*entry.option.choices, *entry.option.words]
    elif entry.option.metavar == "RECIPE":
        action.choices = recipes.names()
    elif entry.type is Path or entry.option.positional:
        action.complete = shtab.FILE
