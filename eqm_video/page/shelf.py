"""Files of the page, uploaded and made, under names that nobody can guess, in a folder with limits.

The oldest files go first when there are too many, or too many bytes, and every file goes after an hour. A folder is
locked by its process: the next page deletes those whose process was killed.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import stat
import tempfile
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if os.name == "posix":
    import fcntl
else:
    fcntl = None  # no locks: folders of killed pages stay

PREFIX = "eqm-page."  # folders of earlier versions, eqm-page-*, have no locks
YOUNG = 60.0  # seconds after which a folder must have its lock
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
        remove_left()
        self._folder = tempfile.TemporaryDirectory(prefix=PREFIX)
        self._lock_of_folder = hold(self.folder)
        self._files: OrderedDict[str, Kept] = OrderedDict()
        self._lock = threading.Lock()

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *error: object) -> None:
        self._folder.cleanup()
        if self._lock_of_folder >= 0:
            os.close(self._lock_of_folder)

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


def hold(folder: Path) -> int:
    """A lock on a folder, as a file descriptor, until it is closed or the process ends; -1 where there are no locks."""
    if fcntl is None:
        return -1
    lock = os.open(folder, os.O_RDONLY)
    fcntl.flock(lock, fcntl.LOCK_EX)  # lockf would not tell the pages of one process apart
    return lock


def remove_left() -> None:
    """Delete this user's folders of pages whose process was killed: nobody holds their locks."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*") if fcntl is not None else ():
        with contextlib.suppress(BlockingIOError, FileNotFoundError):  # its page is alive, or another deletes it
            about = folder.lstat()
            if stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid() and time.time() - about.st_mtime > YOUNG:
                _remove_free(folder)


def _remove_free(folder: Path) -> None:
    """Delete a folder; BlockingIOError if a process holds its lock."""
    lock = os.open(folder, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
    finally:
        os.close(lock)
