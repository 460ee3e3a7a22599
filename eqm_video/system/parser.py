"""The command lines' parser: a wrong option is one sentence, not the whole usage."""

from __future__ import annotations

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """An argparse parser that says what is wrong, and where the options are listed."""

    def error(self, message: str) -> NoReturn:
        """Print one line on stderr and exit with status 2."""
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")
