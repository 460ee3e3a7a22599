"""The exception for mistakes that a user can correct: it names the wrong value, the allowed ones, and what to type."""

from __future__ import annotations

import reprlib
from typing import Any

LONGEST = 80  # characters of a value in an error message


class UserError(ValueError):
    """A wrong input. The command line prints `error: <message>` and exits with status 2, without a traceback."""


def short(value: Any, longest: int = LONGEST) -> str:
    """A value as text for an error message, in at most `longest` characters, however large or deep it is."""
    return cut(_SHORT.repr(value), longest)


def cut(text: str, longest: int = LONGEST) -> str:
    """The text, cut to at most `longest` characters; "..." stands for the rest."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def first_line(error: BaseException) -> str:
    """The first line of an error's message without its full stop; the name of its class if the message is empty."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


class _Short(reprlib.Repr):
    """A repr of the first few items of containers, so that the whole text of a value is never built."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict = 4, 6
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 8
        self.maxstring = self.maxother = LONGEST

    def repr_int(self, value: int, level: int) -> str:
        if value.bit_length() > 200:  # Python refuses to print a number of more than 4,300 digits
            return f"a whole number of {value.bit_length()} bits"
        return repr(value)

    def repr_instance(self, value: Any, level: int) -> str:
        if isinstance(value, str):  # a subclass of str
            return self.repr_str(str(value), level)
        return super().repr_instance(value, level)


_SHORT = _Short()
