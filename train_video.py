"""Train a model: `eqm-video train --config ucf101_b2 data.root=... run.dir=...`."""

import sys

from eqm_video.cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
