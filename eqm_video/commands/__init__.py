"""Every command by its name: each study, and the commands of other rooms. A few that have no other room live here.

Studies are found by reading the folder `studies`, without importing it: a class with `group="look"` in studies/NAME.py
or studies/NAME/study.py is the command NAME, and the list of commands shows the first line of its docstring.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

GROUPS = {"use": "make and use models", "look": "look into one", "compare": "compare many"}
STUDIES = Path(__file__).resolve().parents[1] / "studies"
# The head of a study, to the end of its docstring
STUDY = re.compile(r'^class \w+\([^)]*\bgroup="[^)]*\):\n    """.*?"""', re.DOTALL | re.MULTILINE)


class Command(NamedTuple):
    """A command: its module and the class of its options there, its group, and a line that says what it does.

    study: whether the class is a study, which has a method `main`; else the module has a function `main`.
    """

    module: str
    class_name: str
    group: str
    says: str
    study: bool = False

    def run(self, words: Sequence[str]) -> int:
        """Run the command with the words after its name; returns the exit status."""
        home = self.options() if self.study else importlib.import_module(self.module)
        return home.main(words)

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


OWN = {  # module, class of its options, group, what it does
    "train": ("training.launch", "TrainOptions", "use", "train a model from a recipe"),
    "cache": ("training.cache", "CacheOptions", "use", "encode the clips of a recipe once and keep them on disk"),
    "sample": ("sampling.launch", "SampleOptions", "use", "sample clips or images from a model"),
    "recipes": ("commands.recipes", "RecipesOptions", "use", "list the recipes that ship with the package"),
    "explain": ("commands.explain", "Explain", "use", "say what a key of a recipe means"),
    "records": ("commands.records", "RecordsOptions", "compare", "keep results as records, write documents from them"),
    "doctor": ("commands.doctor", "DoctorOptions", "use", "look at this machine, and whether a recipe fits it"),
    "completion": ("cli.completion", "CompletionOptions", "use", "complete commands and options in bash and zsh"),
    "page": ("page.launch", "PageOptions", "use", "show a model on a web page"),
    "push": ("commands.push", "Push", "use", "share a model on the Hugging Face hub"),
    "merge": ("training.merge", "Merge", "use", "merge adapters (LoRA) into their model"),
    "convert": ("commands.convert", "Convert", "use", "convert weights of the reference EqM or SiT code"),
}
COMMANDS = {name: Command(f"eqm_video.{module}", *rest) for name, (module, *rest) in OWN.items()} | dict(_studies())
