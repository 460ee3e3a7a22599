"""The command `completion`: a script by which a shell completes commands, options and their values."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Literal

import shtab

from eqm_video import options
from eqm_video.cli import quick
from eqm_video.commands import COMMANDS
from eqm_video.options import Declared, option
from eqm_video.sampling.option_words import SHIPPED
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
            if action.dest == "overrides" and "config" in entries:  # the first of them may name the recipe
                own = ["own"] if name == "train" else []
                action.choices = [*own, *recipes.names(), *shtab.Required.FILE]
            elif action.dest in entries:
                _complete(action, entries[action.dest])
        flags = {entry.flag for entry in entries.values()}
        for flag in getattr(cls, "elsewhere", ()):  # read by the command itself, beside its options
            if flag not in flags:
                made.add_argument(flag, metavar="FOLDER").complete = shtab.DIRECTORY
        commands.add_parser(name, help=command.says, parents=[made], add_help=False)
    return whole


def keys(configuration: type, before: str = "") -> set[str]:
    """The sections of a configuration, and its keys such as "data.latents"."""
    names: set[str] = set()
    for part in filter(lambda part: part.init, fields(configuration)):
        kinds = part.metadata.get("kinds", {})
        if kinds and before.count(".") > 1:  # a choice within a choice: `explain` shows it with the outer one
            continue
        path = before if part.metadata.get("flat") else f"{before}{part.name}."  # flat: beside the section's own keys
        names |= {path.rstrip("."), *([f"{path}kind"] if kinds else [])}
        for cls in filter(is_dataclass, [*kinds.values()] if kinds else [part.default_factory]):
            names |= keys(cls, path)
    return names


def _complete(action: argparse.Action, entry: Declared) -> None:
    """Tell shtab which values an option can have: its choices, the names of recipes, keys of a recipe, or files."""
    if entry.option.choices or entry.option.words:
        action.choices = [*entry.option.choices, *entry.option.words]
    elif entry.option.metavar == "RECIPE":
        action.choices = recipes.names()
    elif entry.option.metavar == "KEY":
        action.choices = sorted(keys(quick.rebuild(quick.stored()[quick.RECIPE]["class"])))
    elif entry.option.metavar == "MODEL":
        action.choices = [SHIPPED, *shtab.Required.DIRECTORY]
    elif entry.type is Path or entry.option.positional:
        action.complete = shtab.FILE
