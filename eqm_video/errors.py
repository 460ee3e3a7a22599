"""The exception for mistakes that a user can mend: it says what was given, what is allowed, and what to type."""

from __future__ import annotations

import reprlib
from typing import Any

LONGEST = 80  # characters of a value in an error message


class UserError(ValueError):
    """A wrong input. The command line prints `error: <message>` and exits with status 2, without a traceback."""


def short(value: Any, longest: int = LONGEST) -> str:
    """A value as an error message shows it, in at most `longest` characters, however large or deep it is."""
    return cut(_SHORT.repr(value), longest)


def cut(text: str, longest: int = LONGEST) -> str:
    """Text of at most `longest` characters; dots stand for what is left out."""
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


class _Short(reprlib.Repr):
    """Shows the first few items of everything, so that the whole text of a value is never built."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxdict = 4, 6
        self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 8
        self.maxstring = self.maxother = LONGEST

    def repr_int(self, value: int, level: int) -> str:
        if value.bit_length() > 200:  # Python refuses to write out a number of more than 4,300 digits
            return f"a whole number of {value.bit_length()} bits"
        return repr(value)

    def repr_instance(self, value: Any, level: int) -> str:
        if isinstance(value, str):  # a class of text
            return self.repr_str(str(value), level)
        return super().repr_instance(value, level)


_SHORT = _Short()
