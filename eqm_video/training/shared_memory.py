"""The room in /dev/shm, through which workers pass batches. A batch that does not fit is lost without an error."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from eqm_video.errors import UserError

PLACE = Path("/dev/shm")
AHEAD = 2  # batches that a DataLoader keeps for each worker


def check_shared_memory(batch_bytes: int, workers: int, processes: int = 1) -> None:
    """UserError if the batches made ahead do not fit into the free part of /dev/shm (on Linux; elsewhere nothing).

    `batch_bytes`: the largest batch of a training process. This machine has `processes` of them, with `workers` each.
    """
    if workers == 0 or sys.platform != "linux" or not PLACE.is_dir():
        return
    status = os.statvfs(PLACE)
    free = status.f_bavail * status.f_frsize
    batches = (AHEAD * workers + 1) * processes  # and the batch that is being trained on
    if batches * batch_bytes <= free:
        return
    fewer = (free // max(1, batch_bytes * processes) - 1) // AHEAD
    less = f"data.workers={fewer}, or " if fewer >= 1 else ""
    each = f" in each of {processes} processes" if processes > 1 else ""
    raise UserError(
        f"data.workers={workers}{each} keep up to {batches} batches of {_megabytes(batch_bytes)} in {PLACE}, which has "
        f"{_megabytes(free)} free: give it {_megabytes(2 * batches * batch_bytes)} (docker run "
        f"--shm-size={max(1, -(-2 * batches * batch_bytes // 2**30))}g), or type {less}data.workers=0"
    )


def _megabytes(count: int) -> str:
    return f"{count / 2**20:,.0f} MiB" if count >= 2**20 else f"{count / 2**10:,.0f} KiB"
