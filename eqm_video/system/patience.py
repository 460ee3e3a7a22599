"""Time limits of waits: nothing in a run waits for ever, and each limit ends in an error that says why.

`EQM_VIDEO_PATIENCE` multiplies all limits: with 3 they are three times as long, with 0.1 a tenth.
"""

from __future__ import annotations

import math
import os

from eqm_video.errors import UserError

VARIABLE = "EQM_VIDEO_PATIENCE"
DISK = 60.0  # seconds for a data folder that is not reachable, such as a network disk
DATA = 600.0  # seconds for the next batch
FULL = 30.0  # seconds for room on a full disk, for the last checkpoint of a run
SILENT = 300.0  # seconds for a process that gives no sign of life
STUCK = 1800.0  # seconds for a process that lives, but makes no progress; longer than DISK and DATA


def patience(seconds: float) -> float:
    """A limit in seconds, times `EQM_VIDEO_PATIENCE` if that is set; UserError if that is not a number above 0."""
    text = os.environ.get(VARIABLE, "1")
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise UserError(f"{VARIABLE}={text!r} multiplies the time limits of waits: give a number above 0, such as 2")
    return seconds * factor
