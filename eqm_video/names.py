"""Names of files and classes as text that can be shown, typed and stored, for any bytes and accents."""

from __future__ import annotations

import re
import unicodedata

_LONE = re.compile("[\ud800-\udc7f\udd00-\udfff]")  # surrogates that do not stand for a byte of a file's name
_INVISIBLE = ("Cc", "Cs", "Zl", "Zp")  # control characters, surrogates, ends of lines and paragraphs


def shown(name: str) -> str:
    r"""The name as a single line that every UTF-8 terminal, file and picture accepts.

    A byte that is not UTF-8, which Python keeps as a lone surrogate, becomes text such as `\xe9`; a line break or other
    control character becomes text such as `\n` or `\x07`.
    """
    spelled = _LONE.sub(lambda half: f"\\u{ord(half[0]):04x}", name)
    text = spelled.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(_escaped(letter) if unicodedata.category(letter) in _INVISIBLE else letter for letter in text)


def as_label(name: str) -> str:
    """The label of a class folder's name, or of a typed word: `shown`, in Unicode's normal form C.

    Linux and macOS store the same accents in different ways; as labels they are equal.
    """
    return unicodedata.normalize("NFC", shown(name))


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
