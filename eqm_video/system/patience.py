"""Time limits of waits: nothing in a run waits for ever, and each limit ends in a sentence.

`EQM_VIDEO_PATIENCE` multiplies all of them: 3 is three times as patient, 0.1 gives up after a tenth.
"""

from __future__ import annotations

import math
import os

from eqm_video.errors import UserError

VARIABLE = "EQM_VIDEO_PATIENCE"
DISK = 60.0  # seconds for a data folder that is away, such as a network disk
DATA = 600.0  # seconds for the next batch
FULL = 30.0  # seconds for room on a full disk, where the last checkpoint of a run cannot be written
SILENT = 300.0  # seconds for a process that gives no sign of life
STUCK = 1800.0  # seconds for a process that lives, but comes no further; longer than those for disk and data


def patience(seconds: float) -> float:
    """A limit in seconds, times `EQM_VIDEO_PATIENCE` where that is set; UserError unless it is a number above 0."""
    text = os.environ.get(VARIABLE, "1")
    try:
        factor = float(text)
    except ValueError:
        factor = math.nan
    if not 0 < factor < math.inf:
        raise UserError(f"{VARIABLE}={text!r} multiplies the time limits of waits: give a number above 0, such as 2")
    return seconds * factor
