"""A run's folder belongs to the process that trains there."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eqm_video.errors import UserError

if os.name == "posix":
    import fcntl
else:
    fcntl = None  # no locks: two runs in the same folder go unnoticed

LOCK = ".lock"


@contextmanager
def lock_run(folder: Path, named: str = "", doing: str = "training in") -> Iterator[None]:
    """Make a run's folder and lock it for this process; UserError if that fails, or another process trains there.

    The system ends the lock with the process, however the process ends. lockf locks belong to a single process; flock
    locks would live on in the workers that decode data, for a while after their process was killed. `named` (the option
    of the folder) and `doing` (the work there) are for messages.
    """
    named = named or f"run.dir={folder}"
    option = named.partition("=")[0].partition(" ")[0]
    path = folder / LOCK
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # opening a pipe would wait for a reader, for ever
            raise UserError(f"{path} is no file, and a run locks its folder by it: remove it, or give another {option}")
        file = path.open("w")
    except OSError as error:
        raise UserError(f"cannot write to {named} ({error.strerror}): give another {option}") from error
    with file:
        if fcntl is not None:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in (errno.EACCES, errno.EAGAIN):
                    raise UserError(f"cannot lock {named} ({error.strerror}): give another {option}") from error
                raise UserError(
                    f"another process is {doing} {named}, and nothing was changed: wait for its end, stop it, or give "
                    f"another {named.replace(str(folder), 'FOLDER')}"
                ) from error
        yield
