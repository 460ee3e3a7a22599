"""Files of the page, uploaded and made, under names that nobody can guess, in a folder with limits.

The oldest files go first when there are too many, or too many bytes, and every file goes after an hour.
"""

from __future__ import annotations

import re
import secrets
import tempfile
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKEN = re.compile(r"[A-Za-z0-9_-]{22}")  # 16 random bytes


@dataclass(frozen=True)
class Kept:
    """A file: its place, the time at which it came, and what is known about it."""

    path: Path
    since: float
    about: Any = None


class Shelf:
    """A temporary folder of at most `most_files` files and `most_bytes` bytes, each kept for `seconds`.

    A context manager: the folder is deleted at its end. Safe from several threads.
    """

    def __init__(self, most_files: int = 400, most_bytes: int = 2 * 2**30, seconds: float = 3600.0) -> None:
        self.most_files, self.most_bytes, self.seconds = most_files, most_bytes, seconds
        self._folder = tempfile.TemporaryDirectory(prefix="eqm-page-")
        self._files: OrderedDict[str, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()

    @property
    def folder(self) -> Path:
        """The folder, which only this user may read."""
        return Path(self._folder.name)

    def new(self, suffix: str) -> Path:
        """The path of a file that is to be written; its name without `suffix` is its token."""
        return self.folder / f"{secrets.token_urlsafe(16)}{suffix}"

    def keep(self, path: Path, about: Any = None) -> str:
        """Keep a file that `new` named and that is written now; returns its token. Others may have to go."""
        token = path.name[: -len(path.suffix)] if path.suffix else path.name
        with self._lock:
            self._files[token] = Kept(path, time.monotonic(), about)
            self._tidy()
        return token

    def find(self, token: Any) -> Kept | None:
        """The file of a token; None for anything else, and for a file that is gone."""
        if not isinstance(token, str) or not TOKEN.fullmatch(token):
            return None
        with self._lock:
            self._tidy()
            return self._files.get(token)

    def _tidy(self) -> None:
        sizes = {token: kept.path.stat().st_size for token, kept in self._files.items()}
        total, now = sum(sizes.values()), time.monotonic()
        for token, kept in list(self._files.items()):
            late = now - kept.since > self.seconds
            if not late and len(self._files) <= self.most_files and (total <= self.most_bytes or len(self._files) == 1):
                break
            total -= sizes[token]
            kept.path.unlink()
            del self._files[token]
