"""The entry of `python -m eqm_video COMMAND ...`; eqm_video/cli holds the commands."""

from __future__ import annotations

import sys

from eqm_video.cli import main

if __name__ == "__main__":
    sys.exit(main())
