"""Names of files and classes as text that can be shown, typed and stored, whatever bytes and accents they have."""

from __future__ import annotations

import re
import unicodedata

_LONE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # halves of characters that stand for no byte of a file's name
_INVISIBLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, halves of characters, ends of lines and paragraphs


def shown(name: str) -> str:
    r"""A name on one line that every UTF-8 terminal, file and picture takes.

    Bytes that are not UTF-8, which Python keeps as lone surrogates, become `\xe9`; line breaks and other control
    characters `\n`, `\x07`.
    """
    spelled = _LONE.sub(lambda half: f"\\u{ord(half[0]):04x}", name)
    text = spelled.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(_escaped(letter) if unicodedata.category(letter) in _INVISIBLE else letter for letter in text)


def as_label(name: str) -> str:
    """The label that a class folder's name, or a typed word, stands for: `shown`, in Unicode's normal form C.

    Linux and macOS store the same accents in different ways; as labels they are equal.
    """
    return unicodedata.normalize("NFC", shown(name))


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
